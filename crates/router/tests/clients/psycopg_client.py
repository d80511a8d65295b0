"""psycopg 3 as applications use it."""

import threading
from contextlib import closing
from datetime import datetime, timezone
from decimal import Decimal

import psycopg
from psycopg import sql

from clients import conninfo, run


def connect(port, **options):
    options.setdefault("autocommit", True)
    return closing(psycopg.connect(conninfo(port), **options))


def transactions_and_savepoints(port):
    with connect(port) as conn:
        conn.execute("DROP TABLE IF EXISTS psy_t; CREATE TABLE psy_t (id int PRIMARY KEY, x text)")
        with conn.transaction():
            conn.execute("INSERT INTO psy_t VALUES (1, 'a')")
            try:
                with conn.transaction():
                    conn.execute("INSERT INTO psy_t VALUES (1, 'again')")
            except psycopg.errors.UniqueViolation as error:
                assert error.diag.constraint_name == "psy_t_pkey", error.diag
                assert error.diag.table_name == "psy_t" and error.diag.sqlstate == "23505"
            conn.execute("INSERT INTO psy_t VALUES (2, 'b')")
            with conn.transaction(force_rollback=True):
                conn.execute("DELETE FROM psy_t")
        assert conn.execute("SELECT array_agg(id ORDER BY id) FROM psy_t").fetchone() == ([1, 2],)
    with connect(port, autocommit=False) as conn:
        conn.execute("DELETE FROM psy_t")
        conn.rollback()
        assert conn.execute("SELECT count(*) FROM psy_t").fetchone() == (2,)
        try:
            conn.execute("SELECT nonsense")
        except psycopg.errors.UndefinedColumn as error:
            assert error.diag.statement_position == "8", error.diag.statement_position
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        try:
            conn.execute("SELECT 1")
            raise AssertionError("a failed transaction takes no statement")
        except psycopg.errors.InFailedSqlTransaction:
            conn.rollback()
        conn.execute("SELECT 1")
        conn.commit()


def pipelines(port):
    with connect(port) as conn:
        conn.execute("DROP TABLE IF EXISTS psy_p; CREATE TABLE psy_p (id int PRIMARY KEY)")
        with conn.pipeline() as pipeline:
            cursors = [conn.execute("INSERT INTO psy_p VALUES (%s) RETURNING id", [i]) for i in range(300)]
            pipeline.sync()
            assert [cursor.fetchone()[0] for cursor in cursors] == list(range(300))
            last = conn.execute("SELECT count(*) FROM psy_p")
            assert last.fetchone() == (300,)
        # An error aborts what is behind it, up to the next Sync, and not what comes after.
        try:
            with conn.pipeline():
                for i in (1000, 1000, 1001):
                    conn.execute("INSERT INTO psy_p VALUES (%s)", [i])
            raise AssertionError("the second fails")
        except psycopg.errors.UniqueViolation:
            pass
        assert conn.execute("SELECT count(*) FROM psy_p WHERE id >= 1000").fetchone() == (0,)
        # executemany goes as a pipeline by itself
        cursor = conn.cursor()
        cursor.executemany("INSERT INTO psy_p VALUES (%s)", [(i,) for i in range(2000, 3500)])
        assert cursor.rowcount == 1500
        with conn.transaction(), conn.pipeline():
            conn.execute("DELETE FROM psy_p")
        assert conn.execute("SELECT count(*) FROM psy_p").fetchone() == (0,)


def prepared_statements(port):
    with connect(port, prepare_threshold=0) as conn:
        for i in range(20):
            assert conn.execute("SELECT %s::int + 1", [i]).fetchone() == (i + 1,)
    with connect(port, prepare_threshold=2) as conn:
        conn.prepared_max = 3
        # More texts than may stay prepared: they are closed and made again.
        for i in range(40):
            text = sql.SQL("SELECT %s::int + {}").format(sql.Literal(i % 7))
            assert conn.execute(text, [i]).fetchone() == (i + i % 7,)
        # The result's type changes under a prepared statement.
        conn.execute("DROP TABLE IF EXISTS psy_s; CREATE TABLE psy_s (a int); INSERT INTO psy_s VALUES (1)")
        for _ in range(4):
            assert conn.execute("SELECT * FROM psy_s WHERE a = %s", [1], prepare=True).fetchone() == (1,)
        conn.execute("ALTER TABLE psy_s ADD COLUMN b text DEFAULT 'x'")
        try:
            conn.execute("SELECT * FROM psy_s WHERE a = %s", [1], prepare=True)
        except psycopg.errors.FeatureNotSupported as error:
            assert "cached plan must not change result type" in str(error)
        conn.execute("DEALLOCATE ALL")
    with connect(port, prepare_threshold=0) as conn:
        for _ in range(3):
            conn.execute("SELECT %s::text", ["x"])
        conn.execute("DISCARD ALL")
        assert conn.execute("SELECT %s::text", ["x"]).fetchone() == ("x",)


def binary_and_large_values(port):
    with connect(port) as conn:
        value = (
            7,
            Decimal("1234567890.0987654321"),
            b"\x00\xff" * 700_000,
            datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc),
            [1, None, 3],
            "ä" * 500_000,
            None,
        )
        for binary in (False, True):
            cursor = conn.cursor(binary=binary)
            row = cursor.execute(
                "SELECT %b::int, %b::numeric, %b::bytea, %b::timestamptz, %b::int[], %b::text, %b::text", value
            ).fetchone()
            assert row == value, row[0:2]
        rows = conn.execute("SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i").fetchall()
        assert len(rows) == 20_000 and rows[-1][0] == 20_000


def server_side_cursors(port):
    with connect(port, autocommit=False) as conn:
        with conn.cursor("psy_c") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT i FROM generate_series(1, 1050) i")
            assert [row[0] for row in cursor] == list(range(1, 1051))
        with conn.cursor("psy_scroll", scrollable=True) as cursor:
            cursor.execute("SELECT i FROM generate_series(1, 100) i")
            cursor.scroll(50)
            assert cursor.fetchone() == (51,)
            cursor.scroll(-51)
            assert cursor.fetchone() == (1,)
        conn.commit()
    with connect(port) as conn:
        with conn.cursor("psy_hold", withhold=True) as cursor:
            cursor.execute("SELECT i FROM generate_series(1, 30) i")
            assert len(cursor.fetchmany(10)) == 10
            conn.execute("SELECT 1")
            assert len(cursor.fetchall()) == 20
    with connect(port) as conn:
        # Row by row, from a portal that the client reads as it likes.
        rows = conn.cursor().stream("SELECT i FROM generate_series(1, 5000) i")
        assert sum(row[0] for row in rows) == 5000 * 5001 // 2


def copies(port):
    with connect(port) as conn:
        conn.execute("DROP TABLE IF EXISTS psy_copy; CREATE TABLE psy_copy (id int, x text, b bytea)")
        cursor = conn.cursor()
        with cursor.copy("COPY psy_copy FROM STDIN") as copy:
            for i in range(3000):
                copy.write_row((i, "x" * (i % 500), b"\x00" * (i % 50)))
        assert cursor.rowcount == 3000
        with cursor.copy("COPY psy_copy FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "bytea"])
            for i in range(3000):
                copy.write_row((i, None, b"\xff"))
        with cursor.copy("COPY psy_copy TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "bytea"])
            assert sum(1 for _ in copy.rows()) == 6000
        # Given up by the client, and refused by the server: the connection stays.
        for write in (lambda copy: 1 / 0, lambda copy: copy.write("junk\n")):
            try:
                with cursor.copy("COPY psy_copy FROM STDIN") as copy:
                    copy.write("1\tx\t\\\\x00\n")
                    write(copy)
                raise AssertionError("it fails")
            except (ZeroDivisionError, psycopg.errors.BadCopyFileFormat, psycopg.errors.QueryCanceled):
                pass
            except psycopg.errors.InvalidTextRepresentation:
                pass
        assert conn.execute("SELECT count(*) FROM psy_copy").fetchone() == (6000,)
        try:
            # Left in the middle: the client cancels, and reads to the end.
            with cursor.copy("COPY psy_copy TO STDOUT") as copy:
                copy.read()
                raise KeyError
        except KeyError:
            pass
        assert conn.execute("SELECT 1").fetchone() == (1,)


def notifications(port):
    with connect(port) as listener, connect(port) as speaker:
        listener.execute("LISTEN psy_news")
        for i in range(3):
            speaker.execute("SELECT pg_notify('psy_news', %s)", [str(i)])
        heard = [notify.payload for notify in listener.notifies(timeout=20, stop_after=3)]
        assert heard == ["0", "1", "2"], heard
        listener.execute("UNLISTEN psy_news")
        speaker.execute("NOTIFY psy_news, 'late'")
        assert list(listener.notifies(timeout=0)) == []


def notices_and_parameters(port):
    with connect(port) as conn:
        told = []
        conn.add_notice_handler(lambda diag: told.append((diag.severity, diag.message_primary)))
        conn.execute("DO $$ BEGIN RAISE NOTICE 'so'; RAISE WARNING 'it goes'; END $$")
        assert told == [("NOTICE", "so"), ("WARNING", "it goes")], told
        assert conn.info.parameter_status("server_version").startswith(str(conn.info.server_version // 10000))
        conn.execute("SET application_name = 'psy'")
        assert conn.info.parameter_status("application_name") == "psy"
        conn.execute("SET client_encoding = 'LATIN1'")
        assert conn.info.encoding == "iso8859-1"
        assert conn.execute("SELECT 'é'").fetchone() == ("é",)
        conn.execute("SET TimeZone = 'Asia/Tokyo'")
        assert conn.execute("SELECT now()").fetchone()[0].utcoffset().total_seconds() == 9 * 3600
    options = {"options": "-c statement_timeout=12345 -c search_path=pg_catalog,public"}
    with connect(port, application_name="it's", **options) as conn:
        for _ in range(3):
            row = conn.execute("SELECT current_setting('application_name'), current_setting('statement_timeout')")
            assert row.fetchone() == ("it's", "12345ms")


def cancels(port):
    with connect(port) as conn, connect(port) as other:
        running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s AND pid <> pg_backend_pid()"
        query = f"SELECT pg_sleep(60) /* {port} */"

        def cancel():
            while other.execute(running, [query]).fetchone() == (0,):
                pass
            conn.cancel_safe()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            conn.execute(query)
            raise AssertionError("it is cancelled")
        except psycopg.errors.QueryCanceled:
            pass
        thread.join()
        assert conn.execute("SELECT 1").fetchone() == (1,)
        try:
            conn.execute("SET statement_timeout = 20; SELECT pg_sleep(60)")
            raise AssertionError("it takes too long")
        except psycopg.errors.QueryCanceled:
            pass


def two_phase_commits(port):
    with connect(port, autocommit=False) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS psy_tpc (id int)")
        conn.execute("DELETE FROM psy_tpc")
        conn.commit()
        for outcome in (conn.tpc_commit, conn.tpc_rollback):
            conn.tpc_begin(conn.xid(1, f"g{port}", "b"))
            conn.execute("INSERT INTO psy_tpc VALUES (1)")
            conn.tpc_prepare()
            outcome()
        assert conn.execute("SELECT count(*) FROM psy_tpc").fetchone() == (1,)


def several_results(port):
    with connect(port) as conn:
        cursor = conn.execute("SELECT 1; SELECT 2, 3; SET work_mem = '5MB'; SHOW work_mem")
        seen = []
        while True:
            if cursor.description:
                seen.extend(cursor.fetchall())
            if not cursor.nextset():
                break
        assert seen == [(1,), (2, 3), ("5MB",)], seen
        # What stands in one string is one transaction.
        try:
            conn.execute("CREATE TABLE psy_never (i int); SELECT 1/0")
        except psycopg.errors.DivisionByZero:
            pass
        assert conn.execute("SELECT to_regclass('psy_never')").fetchone() == (None,)
        assert conn.execute("").statusmessage in (None, "")


run(
    [
        transactions_and_savepoints,
        pipelines,
        prepared_statements,
        binary_and_large_values,
        server_side_cursors,
        copies,
        notifications,
        notices_and_parameters,
        cancels,
        two_phase_commits,
        several_results,
    ]
)
