"""The traps of cumulative facts: changes of the base tables, with the facts before and after.

Every trap has a test (and questions, sessions and answer ids) of its own, `{t}` in its statements.
`hours` says which hours must run after the change. The expected facts are written out by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

QUESTIONS = (
    "SELECT string_agg(concat_ws(' ', student_id, question_id - {t}0, answer_count, "
    "coalesce(final_answer_option, '-'), is_correct, time_spent), ', ' "
    "ORDER BY student_id, question_id) "
    "FROM analytics.question_interaction_fact WHERE test_id = {t}"
)
"""Student, question, answers, final option (`-` for null), correct or not, seconds."""
STUDENTS = (
    "SELECT string_agg(concat_ws(' ', student_id, questions_attempted || '/' || total_questions, "
    "correct_answers, accuracy_percent, time_spent), ', ' ORDER BY student_id) "
    "FROM analytics.test_summary_fact WHERE test_id = {t}"
)
"""Student, questions attempted of all, correct ones, accuracy in percent, seconds."""
FUNNEL = (
    "SELECT concat_ws(' ', total_submissions, completed_submissions, incomplete_submissions, "
    "completion_rate, avg_submit_time) FROM analytics.test_funnel_fact WHERE test_id = {t}"
)
"""Submissions, completed, incomplete, rate in percent, mean seconds of a submission."""


def answer(
    number: int,
    student: int,
    question: int,
    option: str | None,
    when: str,
    session: str = "NULL",
) -> str:
    """Return the statement that adds an answer, on the first of January if `when` has no date."""
    value = "NULL" if option is None else f"'{option}'"
    moment = when if " " in when else f"2024-01-01 {when}"
    return (
        f"INSERT INTO answers VALUES ({{t}}0{number}, {student}, {{t}}{question}, {{t}}, "
        f"{session}, {value}, '{moment}Z')"
    )


def submission(student: int, when: str, status: str = "completed") -> str:
    """Return the statement that adds a submission on the first of January."""
    return f"INSERT INTO submissions VALUES ({student}, {{t}}, '2024-01-01 {when}Z', '{status}')"


def update(number: int, change: str) -> str:
    """Return the statement that changes an answer."""
    return f"UPDATE answers SET {change} WHERE answer_id = {{t}}0{number}"


@dataclass(frozen=True)
class Trap:
    """Base rows, a change of them, the hours to run after it, and the facts before and after."""

    name: str
    before: tuple[str, ...]
    change: tuple[str, ...]
    hours: str
    shown: str
    had: str | None
    has: str | None


KEY = "INSERT INTO questions VALUES ({t}1, 'A')"
TRAPS = (
    Trap(
        "an answer in the next hour extends the row of this one",
        (answer(1, 7, 1, "A", "09:59"),),
        (answer(2, 7, 1, "B", "10:01"),),
        "ten",
        QUESTIONS,
        "7 1 1 A 0",
        "7 1 2 B 120",
    ),
    Trap(
        "a new question in a test moves the total of every student of that test",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 8, 1, "A", "09:20")),
        (answer(3, 9, 2, "A", "10:10"),),
        "ten",
        STUDENTS,
        "7 1/1 0 0 0, 8 1/1 0 0 0",
        "7 1/2 0 0 0, 8 1/2 0 0 0, 9 1/2 0 0 0",
    ),
    Trap(
        "the only answer of a question is deleted, and its row goes",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 8, 2, "A", "09:10")),
        ("DELETE FROM answers WHERE answer_id = {t}01",),
        "nine",
        QUESTIONS,
        "7 1 1 A 0, 8 2 1 A 0",
        "8 2 1 A 0",
    ),
    Trap(
        "the only answer of a question is deleted, and it goes from every student's total",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 8, 2, "A", "09:10")),
        ("DELETE FROM answers WHERE answer_id = {t}01",),
        "nine",
        STUDENTS,
        "7 1/2 0 0 0, 8 1/2 0 0 0",
        "8 1/1 0 0 0",
    ),
    Trap(
        "a question joins the total of all students when the hour of its answer runs",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 8, 2, "A", "10:10")),
        (update(2, "submitted_option = 'B'"),),
        "ten",
        STUDENTS,
        "7 1/1 0 0 0",
        "7 1/2 0 0 0, 8 1/2 0 0 0",
    ),
    Trap(
        "a question whose answer goes before its hour ever ran is in no total",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 8, 2, "A", "10:10")),
        ("DELETE FROM answers WHERE answer_id = {t}02",),
        "ten",
        STUDENTS,
        "7 1/1 0 0 0",
        "7 1/1 0 0 0",
    ),
    Trap(
        "an answer moves to another hour",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 7, 1, "B", "09:20")),
        (update(1, "timestamp = '2024-01-01 10:20Z'"),),
        "nine and ten",
        QUESTIONS,
        "7 1 2 B 600",
        "7 1 2 A 3600",
    ),
    Trap(
        "an answer moves to another student",
        (answer(1, 7, 1, "A", "09:10"),),
        (update(1, "student_id = 8"),),
        "nine",
        QUESTIONS,
        "7 1 1 A 0",
        "8 1 1 A 0",
    ),
    Trap(
        "an answer moves to another test",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 8, 2, "A", "09:10")),
        (update(1, "test_id = 1"),),
        "nine",
        STUDENTS,
        "7 1/2 0 0 0, 8 1/2 0 0 0",
        "8 1/1 0 0 0",
    ),
    Trap(
        "an answer moves to another question",
        (answer(1, 7, 1, "A", "09:10"),),
        (update(1, "question_id = {t}2"),),
        "nine",
        QUESTIONS,
        "7 1 1 A 0",
        "7 2 1 A 0",
    ),
    Trap(
        "an answer moves to a session that had expired",
        ("INSERT INTO sessions VALUES ({t}, '2024-01-01 09:00Z')", answer(1, 7, 1, "A", "09:10")),
        (update(1, "session_id = {t}"),),
        "nine",
        QUESTIONS,
        "7 1 1 A 0",
        None,
    ),
    Trap(
        "among answers at the same moment the one with the highest id is final",
        (KEY, answer(2, 7, 1, "B", "09:10"), answer(1, 7, 1, "A", "09:10")),
        (answer(3, 7, 1, "A", "09:10"),),
        "nine",
        QUESTIONS,
        "7 1 2 B f 0",
        "7 1 3 A t 0",
    ),
    Trap(
        "a choice that is cleared last is the final option, and wrong",
        (KEY, answer(1, 7, 1, "A", "09:10")),
        (answer(2, 7, 1, None, "10:10"),),
        "ten",
        QUESTIONS,
        "7 1 1 A t 0",
        "7 1 2 - f 3600",
    ),
    Trap(
        "an answer exactly at the expiry counts, and a microsecond later it does not",
        (
            "INSERT INTO sessions VALUES ({t}, '2024-01-01 09:10Z')",
            answer(1, 7, 1, "A", "09:10", "{t}"),
            answer(2, 7, 2, "A", "09:10:00.000001", "{t}"),
        ),
        ("UPDATE sessions SET expiry_time = expiry_time + interval '1 us' WHERE session_id = {t}",),
        "nine",
        QUESTIONS,
        "7 1 1 A 0",
        "7 1 1 A 0, 7 2 1 A 0",
    ),
    Trap(
        "sessions may never expire, have always expired, or have no row",
        (
            "INSERT INTO sessions VALUES ({t}1, 'infinity'), ({t}2, '-infinity'), ({t}3, NULL)",
            *(answer(n, 7, n, "A", "09:10", f"{{t}}{n}") for n in (1, 2, 3, 4)),
        ),
        ("UPDATE sessions SET expiry_time = NULL WHERE session_id = {t}2",),
        "nine",
        QUESTIONS,
        "7 1 1 A 0, 7 3 1 A 0, 7 4 1 A 0",
        "7 1 1 A 0, 7 2 1 A 0, 7 3 1 A 0, 7 4 1 A 0",
    ),
    Trap(
        "an answer exactly on the hour belongs to the hour that starts then",
        (answer(1, 7, 1, "A", "09:59:59.999999"),),
        (answer(2, 7, 1, "B", "10:00"),),
        "ten",
        QUESTIONS,
        "7 1 1 A 0",
        "7 1 2 B 1e-06",
    ),
    Trap(
        "a sitting across midnight is one sitting",
        (answer(1, 7, 1, "A", "23:59:30"), answer(2, 7, 2, "A", "2024-01-02 00:00:15")),
        (answer(3, 7, 2, "B", "2024-01-02 00:00:30"),),
        "ten",
        STUDENTS,
        None,
        "7 2/2 0 0 60",
    ),
    Trap(
        "times are exact to the microsecond",
        (answer(1, 7, 1, "A", "09:10:00.000001"), answer(2, 7, 1, "B", "09:10:00.000003")),
        (answer(3, 7, 1, "C", "09:10:00.000002"), answer(4, 7, 1, "D", "09:10:12.345679")),
        "nine",
        QUESTIONS,
        "7 1 2 B 2e-06",
        "7 1 4 D 12.345678",
    ),
    Trap(
        "each retake is timed from its own first answer",
        (answer(1, 7, 1, "A", "09:00"), submission(7, "09:10"), answer(2, 7, 1, "B", "10:00")),
        (submission(7, "10:05", "timeout"),),
        "ten",
        FUNNEL,
        "1 1 0 100 600",
        "2 1 1 50 450",
    ),
    Trap(
        "a late submission shortens a submission of the next hour",
        (answer(1, 7, 1, "A", "09:05"), answer(2, 7, 1, "B", "10:05"), submission(7, "10:10")),
        (submission(7, "09:20"),),
        "nine",
        FUNNEL,
        "1 1 0 100 3900",
        "2 2 0 100 600",
    ),
    Trap(
        "a late answer lengthens a submission of a later hour",
        (answer(1, 7, 1, "A", "10:05"), submission(7, "10:10"), submission(8, "09:10")),
        (answer(2, 7, 1, "B", "09:40"),),
        "nine",
        FUNNEL,
        # The student of ten o'clock follows when that hour runs.
        "1 1 0 100",
        "2 2 0 100 1800",
    ),
    Trap(
        "a submission before its answers counts, without a time",
        (submission(7, "09:10", "Completed"),),
        (answer(1, 7, 1, "A", "09:20"),),
        "nine",
        FUNNEL,
        "1 1 0 100",
        "1 1 0 100",
    ),
    Trap(
        "a submission without answers does not count in the mean",
        (answer(1, 7, 1, "A", "09:10"), submission(7, "09:20")),
        (submission(8, "10:20", "skipped"),),
        "ten",
        FUNNEL,
        "1 1 0 100 600",
        "2 1 1 50 600",
    ),
    Trap(
        "a submission after all answers is timed from the first",
        (answer(1, 7, 1, "A", "09:10"), answer(2, 7, 2, "A", "09:15")),
        (submission(7, "10:10"),),
        "ten",
        FUNNEL,
        None,
        "1 1 0 100 3600",
    ),
    Trap(
        "a funnel goes when its last submission is deleted",
        (submission(7, "09:10"),),
        ("DELETE FROM submissions WHERE test_id = {t}",),
        "nine",
        FUNNEL,
        "1 1 0 100",
        None,
    ),
)
