-- Creates the roles of the platform with the fewest privileges: read the base tables, own the facts.
-- Run it once with psql, as the owner of the database and the base tables, with the right to create
-- roles (CREATEROLE); a superuser is not needed:
--
--   psql -d DATABASE -v source=public -v facts=analytics -f roles.sql
--   psql -d DATABASE -c '\password mcq_writer'
--
-- mcq_writer is the role of the database URL. mcq_reader is for analysts: grant it to their roles.
-- The script does everything or nothing; on failure psql says why, and exits with 3. Running it again
-- changes nothing, except that it corrects the owner of the facts.

\set ON_ERROR_STOP on
\if :{?source} \else \set source public \endif
\if :{?facts} \else \set facts analytics \endif

BEGIN;
SET LOCAL client_min_messages = warning;
-- DO blocks cannot read psql variables.
SELECT set_config('mcq.source', :'source', true), set_config('mcq.facts', :'facts', true) \gset set_

DO $$
BEGIN
    IF current_setting('mcq.source') = current_setting('mcq.facts') THEN
        RAISE EXCEPTION 'source and facts are both the schema %: give the facts one of their own',
            current_setting('mcq.facts');
    END IF;
END $$;

SELECT 'CREATE ROLE mcq_writer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mcq_writer') \gexec
SELECT 'CREATE ROLE mcq_reader NOLOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mcq_reader') \gexec

-- To give mcq_writer a schema, a role must be able to SET ROLE mcq_writer. The creator of mcq_writer may
-- grant itself that right, and keeps it for this transaction only. Before 16 every member has it.
SELECT current_setting('server_version_num')::int >= 160000 AS grants_have_options \gset
\if :grants_have_options
    SELECT NOT pg_has_role('mcq_writer', 'SET') AS to_be_granted \gset
\else
    SELECT NOT pg_has_role('mcq_writer', 'MEMBER') AS to_be_granted \gset
\endif
\if :to_be_granted
    GRANT mcq_writer TO CURRENT_USER;
\endif

-- Tasks put the keys of the rows that they read into temporary tables.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO mcq_writer;
GRANT CONNECT ON DATABASE :"DBNAME" TO mcq_reader;

GRANT USAGE ON SCHEMA :"source" TO mcq_writer;
GRANT SELECT ON
    :"source".answers, :"source".questions, :"source".sessions, :"source".submissions
TO mcq_writer;

-- A GRANT without the right to grant is only a warning in PostgreSQL.
DO $$
DECLARE
    base text;
BEGIN
    IF NOT has_schema_privilege('mcq_writer', current_setting('mcq.source'), 'USAGE') THEN
        RAISE EXCEPTION 'mcq_writer may not use the schema %: let its owner grant that',
            current_setting('mcq.source');
    END IF;
    FOREACH base IN ARRAY ARRAY['answers', 'questions', 'sessions', 'submissions'] LOOP
        IF NOT has_table_privilege(
            'mcq_writer', format('%I.%I', current_setting('mcq.source'), base), 'SELECT'
        ) THEN
            RAISE EXCEPTION 'mcq_writer may not read %.%: let its owner grant that',
                current_setting('mcq.source'), base;
        END IF;
    END LOOP;
END $$;

CREATE SCHEMA IF NOT EXISTS :"facts" AUTHORIZATION mcq_writer;

-- Tables that init-db created as another role become mcq_writer's: those of all migrations. Other
-- objects in the schema, such as views, keep their owners.
DO $$
DECLARE
    facts text := current_setting('mcq.facts');
    other record;
BEGIN
    FOR other IN
        SELECT nspname AS name, pg_get_userbyid(nspowner) AS owner,
            pg_has_role(nspowner, 'USAGE') AS is_ours, 'SCHEMA' AS kind, format('%I', nspname) AS named
        FROM pg_namespace
        WHERE nspname = facts AND nspowner <> 'mcq_writer'::regrole
        UNION ALL
        SELECT relname, pg_get_userbyid(relowner), pg_has_role(relowner, 'USAGE'), 'TABLE',
            format('%I.%I', facts, relname)
        FROM pg_class
        WHERE relnamespace = quote_ident(facts)::regnamespace AND relkind IN ('r', 'p')
            AND relowner <> 'mcq_writer'::regrole
            AND (
                relname ~ '^(question_interaction|test_summary|test_funnel)_fact(_hour|_p[0-9]+)?$'
                OR relname ~ '^stg_([0-9a-f]{12}|(question_interaction|test_summary|test_funnel)_fact)_'
                OR relname IN (
                    'student_test_hour', 'student_test_submissions', 'etl_metadata',
                    'running_attempt', 'hour_fingerprint', 'wrong_hour', 'alembic_version'
                )
            )
        -- The schema first: the new owner of a table needs the right to create tables in it.
        ORDER BY kind, name
    LOOP
        IF NOT other.is_ours THEN
            RAISE EXCEPTION 'the % % belongs to %: let that role or a superuser run this',
                lower(other.kind), other.named, other.owner;
        END IF;
        EXECUTE format('ALTER %s %s OWNER TO mcq_writer', other.kind, other.named);
    END LOOP;
END $$;

-- Only the owner, mcq_writer, can grant these.
SET LOCAL ROLE mcq_writer;
GRANT USAGE ON SCHEMA :"facts" TO mcq_reader;
SELECT format('GRANT SELECT ON %I.%I TO mcq_reader', schemaname, tablename)
FROM pg_tables WHERE schemaname = :'facts' AND tableowner = 'mcq_writer' \gexec
ALTER DEFAULT PRIVILEGES IN SCHEMA :"facts" GRANT SELECT ON TABLES TO mcq_reader;
RESET ROLE;

\if :to_be_granted
    REVOKE mcq_writer FROM CURRENT_USER;
\endif
COMMIT;
