"""The declarative side: streams, routing specs, plans and layouts. Needs NumPy alone."""

from sparsemoc.spec.anchors import First as First
from sparsemoc.spec.anchors import Window as Window
from sparsemoc.spec.anchors import first as first
from sparsemoc.spec.anchors import window as window
from sparsemoc.spec.chunks import Chunks as Chunks
from sparsemoc.spec.errors import LayoutError as LayoutError
from sparsemoc.spec.errors import ShapeError as ShapeError
from sparsemoc.spec.errors import SparsemocError as SparsemocError
from sparsemoc.spec.errors import SpecError as SpecError
from sparsemoc.spec.errors import UnsupportedError as UnsupportedError
from sparsemoc.spec.layout import ChunkMajor as ChunkMajor
from sparsemoc.spec.layout import Layout as Layout
from sparsemoc.spec.plan import Plan as Plan
from sparsemoc.spec.plan import plan as plan
from sparsemoc.spec.report import LoopClosures as LoopClosures
from sparsemoc.spec.report import Report as Report
from sparsemoc.spec.routing import Block as Block
from sparsemoc.spec.routing import RouteDropout as RouteDropout
from sparsemoc.spec.routing import RoutingSpec as RoutingSpec
from sparsemoc.spec.sample_plan import SamplePlan as SamplePlan
from sparsemoc.spec.serial import load_spec as load_spec
from sparsemoc.spec.stream import Segment as Segment
from sparsemoc.spec.stream import Stream as Stream
