#!/usr/bin/env bash
# Run once by the PostgreSQL image on an empty volume: the two roles, the database, and the vector extension.
# The application's role owns nothing and is held by row-level security; the owner's runs the migrations.
set -euo pipefail

psql --set ON_ERROR_STOP=1 --username postgres --dbname postgres \
  --set owner_password="$DATABASE_OWNER_PASSWORD" --set app_password="$DATABASE_APP_PASSWORD" <<'SQL'
CREATE ROLE downstack_owner LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'owner_password';
CREATE ROLE downstack_app LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'app_password';
CREATE DATABASE downstack OWNER downstack_owner;
REVOKE ALL ON DATABASE downstack FROM PUBLIC;
GRANT CONNECT ON DATABASE downstack TO downstack_app;
\connect downstack
CREATE EXTENSION vector;
SQL
