"""The crossover: from which length and up to which density Mixture of Contexts is faster than dense attention."""
