"""The rules of anchors and candidates, as loops over the tokens of one small stream that a reader can check by eye.

The expected side uses nothing of the library: six tables, one character for each token, and one line for each rule.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemoc.spec.anchors import First, Window, first, window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.plan import plan
from sparsemoc.spec.routing import Block, RoutingSpec
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.spec.stream import Segment, Stream

STREAM = Stream(
    (
        Segment("text", 3),  # the prompt: global
        Segment("text", 2, shot=0),
        Segment("video", shot=0, grid=(2, 1, 3)),
        Segment("text", 1, shot=1),
        Segment("video", shot=1, grid=(2, 2, 1)),
        Segment("video", shot=0, grid=(1, 3, 1)),  # shot 0 goes on
        Segment("audio", 4),  # no number: a shot by itself; no grid
        Segment("text", 2, shot=1),  # a second caption of shot 1
    )
)
# ......... 0         1         2
# ......... 0123456789012345678901234
SEGMENT = " 000112222223444455566667 7".replace(" ", "")
KIND = "   tttttvvvvvvtvvvvvvvaaaatt".strip()
SHOT = "   ...00000000111110 00xxxx11".replace(" ", "")  # "." global, "x" the audio by itself
FRAME = "  .....AAABBB.CCDDEEE......".strip()  # "." no frame
CHUNK = "  000112223334556677788 99aa".replace(" ", "")  # Chunks(size=3): 6 = 3 + 3, 4 = 2 + 2
TOKENS = range(25)
CHUNKS = range(11)

# How many tokens of the shot, and which frame of the shot, come before each token; shot 0 has frames A, B, E.
TOKEN_OF_SHOT = [sum(SHOT[j] == SHOT[i] for j in range(i)) for i in TOKENS]
FRAME_OF_SHOT = {"A": 0, "B": 1, "E": 2, "C": 0, "D": 1}


def sees(anchor: str | First | Window, i: int, j: int) -> bool:
    """Say whether query i sees key j by one anchor."""
    match anchor:
        case "text":
            return KIND[j] == "t"
        case "caption":
            return KIND[j] == "t" and SHOT[j] in (".", SHOT[i])
        case "shot":
            return SHOT[j] == SHOT[i] if SHOT[i] != "." else SEGMENT[j] == SEGMENT[i]
        case "segment":
            return SEGMENT[j] == SEGMENT[i]
        case "frame":
            return SEGMENT[j] == SEGMENT[i] and FRAME[j] == FRAME[i]
        case "chunk":
            return CHUNK[j] == CHUNK[i]
        case First(n, "token", "stream"):
            return j < n
        case First(n, "token", "shot"):
            return SHOT[j] != "." and TOKEN_OF_SHOT[j] < n
        case First(n, "frame", "stream"):
            return FRAME[j] in "ABCDE"[:n]
        case First(n, "frame", "shot"):
            return FRAME[j] != "." and FRAME_OF_SHOT[FRAME[j]] < n
        case Window(n, "token"):
            return abs(i - j) <= n
        case Window(n, "frame"):
            return FRAME[i] != "." and SEGMENT[j] == SEGMENT[i] and abs(ord(FRAME[i]) - ord(FRAME[j])) <= n
        case Window(n, "chunk"):
            return abs(int(CHUNK[i], 16) - int(CHUNK[j], 16)) <= n
    raise AssertionError(anchor)


SIZES = st.integers(0, 4) | st.sampled_from([9, 40])
WORDS = ["text", "caption", "shot", "segment", "frame", "chunk"]
FIRSTS = st.builds(first, SIZES, st.sampled_from(["token", "frame"]), st.sampled_from(["stream", "shot"]))
WINDOWS = st.builds(window, SIZES, st.sampled_from(["token", "frame", "chunk"]))
ANCHORS = st.lists(st.sampled_from(WORDS) | FIRSTS | WINDOWS, max_size=4).map(tuple)
KINDS = st.lists(st.sampled_from(["text", "video", "audio"]), max_size=3).map(tuple)
LENGTHS = st.tuples(*(st.integers(0, segment.tokens) for segment in STREAM.segments))
WHOLE = (3, 2, 6, 1, 4, 3, 4, 2)


def compiled(anchors: Iterable[str | First | Window], **rules: object) -> SamplePlan:
    """Compile a spec whose text queries route like the others, unless the rules say otherwise."""
    spec = RoutingSpec(**{"stream": STREAM, "chunks": Chunks(size=3), "dense_queries": (), **rules}, anchors=anchors)  # type: ignore[arg-type]
    return plan(spec).samples[0]


def test_the_tables_describe_the_stream() -> None:
    assert [len(table) for table in (SEGMENT, KIND, SHOT, FRAME, CHUNK)] == [25] * 5
    assert [s.kind[0] for s in STREAM.segments for _ in range(s.tokens)] == list(KIND)
    assert compiled(()).chunk_bounds.tolist() == [0, 3, 5, 8, 11, 12, 14, 16, 19, 21, 23, 25]


@pytest.mark.parametrize("anchor", WORDS)
def test_each_word(anchor: str) -> None:
    sample = compiled((anchor,))
    for i in TOKENS:
        assert sample.anchors(i).tolist() == [j for j in TOKENS if sees(anchor, i, j)], (anchor, i)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 11, 24, 25, 100])
@pytest.mark.parametrize(
    ("unit", "of"), [("token", "stream"), ("token", "shot"), ("frame", "stream"), ("frame", "shot")]
)
def test_first(n: int, unit: str, of: str) -> None:
    sample = compiled((first(n, unit, of=of),))
    for i in TOKENS:
        assert sample.anchors(i).tolist() == [j for j in TOKENS if sees(first(n, unit, of), i, j)], i


@pytest.mark.parametrize("n", [0, 1, 2, 3, 12, 100])
@pytest.mark.parametrize("unit", ["token", "frame", "chunk"])
def test_window(n: int, unit: str) -> None:
    sample = compiled((window(n, unit),))
    for i in TOKENS:
        assert sample.anchors(i).tolist() == [j for j in TOKENS if sees(window(n, unit), i, j)], i


# A few answers written out, so that the tables and the lines above are checked too.
@pytest.mark.parametrize(
    ("anchor", "query", "keys"),
    [
        ("caption", 6, [0, 1, 2, 3, 4]),
        ("caption", 20, [0, 1, 2]),
        ("caption", 11, [0, 1, 2, 11, 23, 24]),
        ("shot", 17, [3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 18]),
        ("shot", 1, [0, 1, 2]),
        ("shot", 19, [19, 20, 21, 22]),
        ("frame", 9, [8, 9, 10]),
        ("frame", 22, [19, 20, 21, 22]),
        ("chunk", 14, [14, 15]),
        (first(9, of="shot"), 0, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 20, 21, 22, 23, 24]),
        (first(3, "frame", of="shot"), 0, [5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18]),
        (first(3, "frame"), 24, [5, 6, 7, 8, 9, 10, 12, 13]),
        (window(2), 11, [9, 10, 11, 12, 13]),
        (window(1), 0, [0, 1]),
        (window(1, "frame"), 12, [12, 13, 14, 15]),
        (window(1, "frame"), 20, []),
        (window(1, "chunk"), 11, [8, 9, 10, 11, 12, 13]),
    ],
)
def test_answers_by_hand(anchor: str | First | Window, query: int, keys: list[int]) -> None:
    assert compiled((anchor,)).anchors(query).tolist() == keys


@pytest.mark.parametrize(
    ("rules", "query", "chunks"),
    [
        ({}, 6, [2, 3, 5, 6, 7, 8, 9]),
        ({"causal": "chunk"}, 17, [2, 3, 5, 6]),
        ({"causal": "token"}, 17, [2, 3, 5, 6]),
        ({"causal": "chunk"}, 6, []),
        ({"routable": ("text", "audio")}, 6, [0, 1, 4, 8, 9, 10]),
        ({"routable": ()}, 6, []),
        ({"dense_queries": ("video",)}, 6, []),
    ],
)
def test_candidates_by_hand(rules: dict[str, object], query: int, chunks: list[int]) -> None:
    assert compiled((), **rules).candidates(query).tolist() == chunks


def test_a_chunk_that_the_anchors_cover_only_together_is_no_candidate() -> None:
    # Chunk 2 holds 5, 6, 7: the first 6 tokens cover 5, a window of 1 around 7 covers 6 and 7.
    sample = compiled((first(6), window(1)))
    assert sample.candidates(7).tolist() == [3, 5, 6, 7, 8, 9]
    assert sample.candidates(8).tolist() == [2, 3, 5, 6, 7, 8, 9]


ALL_KINDS = ("text", "video", "audio")


@pytest.mark.parametrize(
    ("reach", "unit", "covering"),
    [
        (1, "token", [10, 12]),
        (2, "token", [9, 10, 12, 13]),
        (1, Block(3), []),  # 8 and 9 do not reach 11; of 12, 13 the second does not
        (2, Block(3), [12, 13]),
        (3, Block(3), [8, 9, 10, 12, 13]),
        (1, Block(2), [10]),  # the blocks 8 9, 10 by itself, 12 13
    ],
)
def test_a_block_has_a_candidate_unless_every_member_covers_it(
    reach: int, unit: str | Block, covering: list[int]
) -> None:
    # Chunk 4 holds token 11 alone; chunk 3 before it holds 8, 9, 10, chunk 5 after it 12, 13.
    sample = compiled((window(reach),), unit=unit, routable=ALL_KINDS)
    for i in (8, 9, 10, 12, 13):
        assert (4 in sample.candidates(i)) == (i not in covering), i


@st.composite
def rules(draw: st.DrawFn) -> dict[str, object]:
    return {
        "anchors": draw(ANCHORS),
        "causal": draw(st.sampled_from(["none", "chunk", "token"])),
        "routable": draw(st.none() | KINDS),
        "dense_queries": draw(KINDS),
        "dense_scope": draw(st.sampled_from(["all", "past"])),
        "unit": draw(st.just("token") | st.builds(Block, st.integers(1, 4))),
    }


@given(rule=rules(), lengths=st.just(WHOLE) | LENGTHS, start=st.integers(0, 24), data=st.data())
def test_all_rules_together(rule: dict[str, object], lengths: tuple[int, ...], start: int, data: st.DataObject) -> None:
    queries = data.draw(st.integers(1, 25 - start), "queries")
    spec = RoutingSpec(stream=STREAM, chunks=Chunks(size=3), **rule)  # type: ignore[arg-type]
    sample = plan(spec, q_start=start, q_tokens=queries).samples[0].with_lengths(lengths)
    present = [i for i in range(start, start + queries) if is_valid(i, lengths)]
    for i in range(start, start + queries):
        keys = [j for j in TOKENS if i in present and is_valid(j, lengths) and is_anchored(spec, i, j)]
        assert sample.anchors(i).tolist() == keys, i
        members = [m for m in present if m == i or same_block(spec, m, i)]
        chunks = [c for c in CHUNKS if i in present and is_candidate(spec, members, c, lengths)]
        assert sample.candidates(i).tolist() == chunks, i


def is_valid(i: int, lengths: tuple[int, ...]) -> bool:
    return i - SEGMENT.index(SEGMENT[i]) < lengths[int(SEGMENT[i])]


def is_dense(spec: RoutingSpec, i: int) -> bool:
    return {"t": "text", "v": "video", "a": "audio"}[KIND[i]] in spec.dense_queries


def is_anchored(spec: RoutingSpec, i: int, j: int) -> bool:
    if spec.causal == "token" and j > i:
        return False
    if is_dense(spec, i) and (spec.dense_scope == "all" or CHUNK[j] <= CHUNK[i]):
        return True
    return any(sees(anchor, i, j) for anchor in spec.anchors)


def same_block(spec: RoutingSpec, i: int, j: int) -> bool:
    if spec.unit == "token" or CHUNK[i] != CHUNK[j]:
        return False
    start = CHUNK.index(CHUNK[i])
    return (i - start) // spec.unit.n == (j - start) // spec.unit.n  # type: ignore[union-attr]


def is_candidate(spec: RoutingSpec, members: list[int], chunk: int, lengths: tuple[int, ...]) -> bool:
    keys = [j for j in TOKENS if int(CHUNK[j], 16) == chunk and is_valid(j, lengths)]
    kind = {"t": "text", "v": "video", "a": "audio"}[KIND[CHUNK.index("0123456789a"[chunk])]]
    if not keys or is_dense(spec, members[0]):
        return False
    if kind not in (spec.routable if spec.routable is not None else ("video", "audio")):
        return False
    if spec.causal != "none" and chunk >= int(CHUNK[members[0]], 16):
        return False
    return not all(is_anchored(spec, i, j) for i in members for j in keys)


def test_padded_queries_and_keys_are_out() -> None:
    # Segment 2 keeps 5 and 6 of its six tokens: chunk 3 is empty, chunk 2 is covered by 5 and 6 alone.
    sample = compiled((first(7),)).with_lengths((3, 2, 2, 1, 4, 3, 4, 2))
    assert sample.anchors(5).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert sample.candidates(5).tolist() == [5, 6, 7, 8, 9]
    assert sample.anchors(8).tolist() == []
    assert sample.candidates(8).tolist() == []


def test_the_n_of_first_and_window_counts_padding() -> None:
    sample = compiled((first(6),)).with_lengths((1, 0, 6, 1, 4, 3, 4, 2))
    assert sample.anchors(20).tolist() == [0, 5]
    sample = compiled((window(2),)).with_lengths((3, 2, 6, 0, 4, 3, 4, 2))
    assert sample.anchors(12).tolist() == [10, 12, 13, 14]


def test_lengths_clamp() -> None:
    sample = compiled(("text",)).with_lengths((99, -5, 6, 1, 4, 3, 4, 2))
    assert sample.anchors(20).tolist() == [0, 1, 2, 11, 23, 24]


def test_packed_samples_stand_for_themselves() -> None:
    short = Stream((Segment("text", 2), Segment("video", 4)))
    spec = RoutingSpec(chunks=Chunks(size=3), anchors=("text", "chunk"))
    packed = plan(spec, (STREAM, short))
    for index, stream in enumerate((STREAM, short)):
        alone = plan(spec, stream).samples[0]
        for i in range(stream.tokens):
            assert packed.samples[index].anchors(i).tolist() == alone.anchors(i).tolist()
            assert packed.samples[index].candidates(i).tolist() == alone.candidates(i).tolist()
    assert packed.samples[1].candidates(2).tolist() == [2]
    assert (packed.chunks, packed.q_tokens, packed.k_tokens, packed.packed) == (11, 31, 31, True)
