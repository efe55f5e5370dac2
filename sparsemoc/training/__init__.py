"""What the training recipe adds around attention: schedule, outer router, monitor."""

from sparsemoc.training.monitor import Monitor as Monitor
from sparsemoc.training.outer_router import OuterRouter as OuterRouter
from sparsemoc.training.schedule import Schedule as Schedule
from sparsemoc.training.schedule import Stage as Stage
from sparsemoc.training.select_shots import Kept as Kept
from sparsemoc.training.select_shots import select_shots as select_shots
from sparsemoc.training.shot_features import shot_features as shot_features
from sparsemoc.training.summary import LayerSummary as LayerSummary
from sparsemoc.training.summary import PlanSummary as PlanSummary
from sparsemoc.training.summary import Summary as Summary
