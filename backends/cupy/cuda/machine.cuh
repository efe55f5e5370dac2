// The machine that a kernel runs on: a GPU, or a CPU that stands in for one.
#pragma once

#ifdef EMULATED
#include "emulation.hpp"
#else
#include "intrinsics.cuh"
#endif
