{# Microbatch demands an event_time. Nothing downstream is filtered by it. #}
{{ config(
    unique_key=['student_id', 'test_id'],
    event_time='hour',
    indexes=[
        {'columns': ['student_id', 'test_id'], 'unique': true},
        {'columns': ['test_id']},
    ],
) }}
{# .render() opts out of the filter by event_time: all rows of a touched student's test count. #}
WITH {{ touched() }},
total AS (
    SELECT t.test_id, count(DISTINCT i.question_id) AS total_questions
    FROM (SELECT DISTINCT test_id FROM touched) t
    JOIN {{ ref('question_interaction_fact').render() }} i ON i.test_id = t.test_id
    GROUP BY t.test_id
), to_compute AS (
    SELECT student_id, test_id FROM touched
    {% if is_incremental() %}
    UNION
    SELECT f.student_id, f.test_id FROM {{ this }} f JOIN total n ON n.test_id = f.test_id
    WHERE f.total_questions <> n.total_questions
    {% endif %}
)
SELECT i.student_id, i.test_id, n.total_questions, count(*) AS questions_attempted,
    count(*) FILTER (WHERE i.is_correct) AS correct_answers,
    100::double precision * count(*) FILTER (WHERE i.is_correct) / count(*) AS accuracy_percent,
    extract(epoch FROM max(i.last_answer_time) - min(i.first_answer_time))::double precision
        AS time_spent
FROM to_compute t
JOIN {{ ref('question_interaction_fact').render() }} i
    ON i.student_id = t.student_id AND i.test_id = t.test_id
JOIN total n ON n.test_id = t.test_id
GROUP BY i.student_id, i.test_id, n.total_questions
