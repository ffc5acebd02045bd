{# The students' tests with a row in the hour of the batch, and their valid answers. #}
{% macro touched() %}
touched AS (
    SELECT student_id, test_id FROM {{ source('base', 'answers') }}
    WHERE {{ in_batch('"timestamp"') }}
    UNION
    SELECT student_id, test_id FROM {{ source('base', 'submissions') }}
    WHERE {{ in_batch('submit_time') }}
)
{% endmacro %}

{% macro in_batch(column) %}
{% if model.batch %}
{{ column }} >= '{{ model.batch.event_time_start }}' AND {{ column }} < '{{ model.batch.event_time_end }}'
{% else %}
true
{% endif %}
{% endmacro %}
