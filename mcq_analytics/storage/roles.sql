-- The least that the platform needs: read the base tables, own the facts, and nothing more.
-- Run it once as the owner of the database, from the psql client:
--
--   psql -d DATABASE -v source=public -v facts=analytics -f roles.sql
--   psql -d DATABASE -c '\password mcq_writer'
--
-- mcq_writer is the role of the database URL. mcq_reader is for analysts: grant it to their roles.
-- Running it again changes nothing.

\if :{?source} \else \set source public \endif
\if :{?facts} \else \set facts analytics \endif

SELECT 'CREATE ROLE mcq_writer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mcq_writer') \gexec
SELECT 'CREATE ROLE mcq_reader NOLOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mcq_reader') \gexec

-- Temporary tables hold the keys that a task reads the rows of.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO mcq_writer;
GRANT CONNECT ON DATABASE :"DBNAME" TO mcq_reader;

GRANT USAGE ON SCHEMA :"source" TO mcq_writer;
GRANT SELECT ON
    :"source".answers, :"source".questions, :"source".sessions, :"source".submissions
TO mcq_writer;

CREATE SCHEMA IF NOT EXISTS :"facts" AUTHORIZATION mcq_writer;
GRANT USAGE ON SCHEMA :"facts" TO mcq_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA :"facts" TO mcq_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE mcq_writer IN SCHEMA :"facts" GRANT SELECT ON TABLES TO mcq_reader;
