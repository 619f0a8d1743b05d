"""Episodes that hypothesis draws, of every tenant, and what it means that two are the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from contracts.records import Episode, Purpose, Span, Step, StopReason

LSNS = st.integers(0, 2**62)
TEXTS = st.text(max_size=12)
FLOATS = st.floats(width=32)  # NaN and infinities travel, too: what an episode may hold is for the store to say
ARRAYS: list[str] = ["observation", "action", "log_probs", "rewards"]


def arrays(dtype: Any, *shape: int) -> st.SearchStrategy[Any]:
    return npst.arrays(dtype, shape)


@st.composite
def text_steps(draw: st.DrawFn) -> Step:
    """One exchange."""
    shown, said = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    return Step(
        observation=draw(arrays(np.int32, shown)),
        action=draw(arrays(np.int32, said)),
        log_probs=draw(arrays(np.float32, said)),
    )


@st.composite
def stretches(draw: st.DrawFn) -> Step:
    """One stretch of play, discrete or continuous."""
    num, size, width = draw(st.integers(0, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    action = arrays(np.int32, num) if draw(st.booleans()) else arrays(np.float32, num, width)
    return Step(
        observation=draw(arrays(np.float32, num + 1, size)),
        action=draw(action),
        log_probs=draw(arrays(np.float32, num)),
        rewards=draw(arrays(np.float32, num)),
        end=draw(st.sampled_from([None, StopReason.TERMINATED, StopReason.TRUNCATED])),
    )


@st.composite
def odd_steps(draw: st.DrawFn) -> Step:
    """Arrays that no learner could read: they travel, so that the store can say what is wrong with them."""
    kinds = npst.boolean_dtypes() | npst.integer_dtypes(endianness="<") | npst.floating_dtypes(endianness="<")
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    one, two, three = (draw(npst.arrays(kinds, shapes)) for _ in range(3))
    return Step(observation=one, action=two, log_probs=three)


EPISODES: st.SearchStrategy[Episode] = st.builds(
    Episode,
    episode_id=TEXTS,
    lease=LSNS,
    member=st.integers(0, 100),
    task_id=TEXTS,
    environment=TEXTS,
    environment_version=TEXTS,
    purpose=st.sampled_from(Purpose),
    steps=(
        st.lists(text_steps(), max_size=4) | st.lists(stretches(), max_size=2) | st.lists(odd_steps(), max_size=1)
    ).map(tuple),
    spans=st.lists(st.builds(Span, start=st.integers(0, 99), version=LSNS), max_size=3).map(tuple),
    stop_reason=st.sampled_from(StopReason),
    reward=st.none() | FLOATS,
    reward_parts=st.dictionaries(TEXTS, FLOATS, max_size=3),
    reward_code=TEXTS,
    reward_deadline=st.none() | FLOATS,
    producer=TEXTS,
    producer_epoch=LSNS,
    seq=LSNS,
    wall_time=FLOATS,
    retries=st.integers(0, 9),
)


def describe(episode: Episode) -> Any:
    """A value that is equal for equal episodes, NaN and the types of arrays included."""
    steps = [
        (
            step.end,
            [
                None if (array := getattr(step, name)) is None else (array.dtype.name, array.shape, array.tobytes())
                for name in ARRAYS
            ],
        )
        for step in episode.steps
    ]
    head = dataclasses.replace(episode, steps=())
    return repr(head), steps
