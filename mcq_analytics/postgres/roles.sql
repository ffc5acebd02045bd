-- The least that the platform needs: read the base tables, own the facts, and nothing more.
-- Run it once from the psql client, as who owns the database and the base tables and may create
-- roles (CREATEROLE); a superuser is not needed:
--
--   psql -d DATABASE -v source=public -v facts=analytics -f roles.sql
--   psql -d DATABASE -c '\password mcq_writer'
--
-- mcq_writer is the role of the database URL. mcq_reader is for analysts: grant it to their roles.
-- All of it is done, or nothing: psql then says why, and exits with 3. Running it again changes
-- nothing, but mends who owns the facts.

\set ON_ERROR_STOP on
\if :{?source} \else \set source public \endif
\if :{?facts} \else \set facts analytics \endif

BEGIN;
SET LOCAL client_min_messages = warning;
-- Blocks of code see no variables of psql.
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

-- Who gives mcq_writer a schema must be able to become mcq_writer. Whoever created the role may grant
-- that to themselves, and has it for this transaction alone. Before 16 every member can.
SELECT current_setting('server_version_num')::int >= 160000 AS grants_have_options \gset
\if :grants_have_options
    SELECT NOT pg_has_role('mcq_writer', 'SET') AS to_be_granted \gset
\else
    SELECT NOT pg_has_role('mcq_writer', 'MEMBER') AS to_be_granted \gset
\endif
\if :to_be_granted
    GRANT mcq_writer TO CURRENT_USER;
\endif

-- Temporary tables hold the keys that a task reads the rows of.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO mcq_writer;
GRANT CONNECT ON DATABASE :"DBNAME" TO mcq_reader;

GRANT USAGE ON SCHEMA :"source" TO mcq_writer;
GRANT SELECT ON
    :"source".answers, :"source".questions, :"source".sessions, :"source".submissions
TO mcq_writer;

-- Who may not grant something is warned, not stopped.
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

-- What init-db made as somebody else is given to mcq_writer: the tables of all migrations. What others
-- keep in the schema, such as views, stays theirs.
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
        WHERE relnamespace = quote_ident(facts)::regnamespace AND relkind = 'r'
            AND relowner <> 'mcq_writer'::regrole
            AND (
                relname ~ '^(question_interaction|test_summary|test_funnel)_fact(_hour)?$'
                OR relname ~ '^stg_(question_interaction|test_summary|test_funnel)_fact_'
                OR relname IN (
                    'etl_metadata', 'running_attempt', 'hour_fingerprint', 'wrong_hour',
                    'alembic_version'
                )
            )
        -- The schema first: who is given a table must be able to make one there.
        ORDER BY kind, name
    LOOP
        IF NOT other.is_ours THEN
            RAISE EXCEPTION 'the % % belongs to %: let that role or a superuser run this',
                lower(other.kind), other.named, other.owner;
        END IF;
        EXECUTE format('ALTER %s %s OWNER TO mcq_writer', other.kind, other.named);
    END LOOP;
END $$;

-- What is mcq_writer's, only mcq_writer shares.
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
