"""`generate_sample`: arguments, columns, span and ids. `test_sample_shape` measures its shape."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mcq_analytics.errors import UsageError
from mcq_analytics.model.facts import IdType
from mcq_analytics.sample import drawing, ids
from mcq_analytics_tests.sample_tables import (
    ENTITIES,
    HOURS,
    PAIR,
    START,
    TABLES,
    TIMES,
    sample,
    values,
)


def test_the_same_arguments_give_the_same_tables() -> None:
    assert sample() == sample()


def test_another_seed_gives_other_tables() -> None:
    one, other = sample(seed=1), sample(seed=2)
    for name in TABLES:
        assert getattr(one, name) != getattr(other, name)


def test_the_tables_have_the_columns_and_types_of_the_base_tables() -> None:
    number, word, moment = pa.int64(), pa.string(), pa.timestamp("us", tz="UTC")
    expected = {
        "answers": {
            "answer_id": number,
            "student_id": number,
            "question_id": number,
            "test_id": number,
            "session_id": number,
            "submitted_option": word,
            "timestamp": moment,
        },
        "questions": {"question_id": number, "correct_option": word},
        "sessions": {"session_id": number, "expiry_time": moment},
        "submissions": {
            "student_id": number,
            "test_id": number,
            "submit_time": moment,
            "completion_status": word,
        },
    }
    tables = sample()
    for name, columns in expected.items():
        assert getattr(tables, name).schema.equals(pa.schema(columns))


@pytest.mark.parametrize("hours", [1, 2, 5, 7, 48, HOURS])
@pytest.mark.parametrize("students", [1, 300])
def test_all_times_lie_within_the_span(students: int, hours: int) -> None:
    tables = sample(students=students, hours=hours)
    assert tables.answers.num_rows > 0
    end = START + timedelta(hours=hours)
    for table, column in TIMES:
        times = getattr(tables, table)[column].drop_null()
        if len(times):
            assert pc.min(times).as_py() >= START
            assert pc.max(times).as_py() < end


@pytest.mark.parametrize("students", [1, 2, 3])
@pytest.mark.parametrize("hours", [1, 3, 30])
def test_the_smallest_samples_work_with_any_seed(students: int, hours: int) -> None:
    for seed in range(30):
        tables = sample(students=students, hours=hours, seed=seed)
        assert len(pc.unique(tables.answers["student_id"])) == students


def test_the_start_may_be_in_any_time_zone() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert sample(start=START.astimezone(east)) == sample()


def test_a_short_span_caps_what_the_most_active_students_do() -> None:
    answers = sample(students=500, hours=3).answers
    assert np.bincount(values(answers, "student_id")).max() <= 2 * drawing.MOST_QUESTIONS


@pytest.mark.parametrize(
    ("kind", "arrow_type", "form"),
    [
        (IdType.INTEGER, pa.int32(), r"\d+"),
        (IdType.BIGINT, pa.int64(), r"\d+"),
        (IdType.TEXT, pa.string(), r"{entity}-\d{{6,}}"),
        (
            IdType.UUID,
            pa.binary(16),
            r"[0-9a-f]{{8}}-[0-9a-f]{{4}}-4[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}",
        ),
    ],
    ids=["integer", "bigint", "text", "uuid"],
)
def test_ids_have_the_requested_type(kind: IdType, arrow_type: pa.DataType, form: str) -> None:
    tables = sample(id_types=dict.fromkeys(ENTITIES, kind))
    plain = sample()
    for name in TABLES:
        table, numbered = getattr(tables, name), getattr(plain, name)
        for column in (it for it in table.column_names if it.endswith("_id")):
            ids, numbers = table[column], numbered[column]
            assert ids.type == arrow_type
            assert ids.null_count == numbers.null_count
            assert len(pc.unique(ids)) == len(pc.unique(numbers))
            pattern = form.format(entity=column.removesuffix("_id"))
            written = [
                str(UUID(bytes=it) if kind is IdType.UUID else it)
                for it in ids.drop_null().to_pylist()
            ]
            assert all(re.fullmatch(pattern, it) for it in written)


def test_each_entity_has_its_own_id_type() -> None:
    answers = sample(id_types={"student": IdType.UUID, "test": IdType.TEXT}).answers
    types = [answers.schema.field(f"{name}_id").type for name in ENTITIES]
    assert types == [pa.int64(), pa.binary(16), pa.int64(), pa.string(), pa.int64()]


def test_the_same_entity_and_number_give_the_same_uuid() -> None:
    kinds = dict.fromkeys(ENTITIES, IdType.UUID)
    answers, numbers = sample(id_types=kinds).answers, sample().answers
    by_number = dict(
        zip(numbers["student_id"].to_pylist(), answers["student_id"].to_pylist(), strict=True)
    )
    other = sample(id_types=kinds, seed=2).answers
    other_numbers = sample(seed=2).answers["student_id"].to_pylist()
    for number, octets in zip(other_numbers, other["student_id"].to_pylist(), strict=True):
        assert by_number[number] == octets
    assert all(UUID(bytes=octets).version == 4 for octets in by_number.values())
    students, tests = (set(answers[it].to_pylist()) for it in PAIR)
    assert not students & tests


def test_a_uuid_gives_back_its_number() -> None:
    kinds = dict.fromkeys(ENTITIES, IdType.UUID)
    for entity in ENTITIES:
        for first in (1, 10**6, 10**18 - 10**6, 2**62):
            tables = sample(id_types=kinds, first_ids={entity: first})
            octets = b"".join(tables.answers[f"{entity}_id"].drop_null().to_pylist())
            numbers = sample(first_ids={entity: first}).answers[f"{entity}_id"].drop_null()
            found = ids.numbers_of_uuids(entity, octets)
            assert sorted(found.tolist()) == sorted(numbers.to_pylist())


def test_a_foreign_uuid_has_no_number() -> None:
    octets = np.random.default_rng(1).bytes(16 * 100_000)
    foreign = b"".join(
        UUID(bytes=octets[at : at + 16], version=4).bytes for at in range(0, 160, 16)
    )
    assert ids.numbers_of_uuids("student", octets + foreign).size == 0
    assert ids.numbers_of_uuids("student", b"").size == 0


def test_text_ids_are_the_entity_and_the_padded_number() -> None:
    answers = sample(id_types={"student": IdType.TEXT}, first_ids={"student": 123}).answers
    assert pc.min(answers["student_id"]).as_py() == "student-000123"


def test_ids_count_from_the_first_id() -> None:
    first = {name: 1_000 * (place + 1) for place, name in enumerate(ENTITIES)}
    shifted, plain = sample(first_ids=first), sample()
    for name in TABLES:
        table, expected = getattr(shifted, name), getattr(plain, name)
        for column in table.column_names:
            if column.endswith("_id"):
                offset = first[column.removesuffix("_id")] - 1
                assert table[column] == pc.add(expected[column], offset)
            else:
                assert table[column] == expected[column]
    assert pc.min(plain.answers["student_id"]).as_py() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": 0}, "students is 0; it must be at least 1"),
        ({"hours": 0}, "hours is 0; it must be at least 1"),
        ({"hours": -3}, "hours is -3; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"start": datetime(2024, 1, 1)}, "has no time zone: give it in UTC"),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        sample(**changes)
    assert "\n" not in str(caught.value)


def test_a_million_answers_take_seconds() -> None:
    before = time.process_time()
    tables = sample(students=1_500, hours=HOURS)
    # About 0.3 s on a laptop; the limit only catches a loop over answers.
    assert (time.process_time() - before) / tables.answers.num_rows * 1e6 < 3
