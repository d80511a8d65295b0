"""asyncpg as applications use it: it prepares everything, and speaks binary."""

import asyncio
import datetime
import decimal
import os

import asyncpg

from clients import run_async


async def connect(port, **options):
    return await asyncpg.connect(
        host="127.0.0.1", port=port, user="postgres", password=os.environ["PGPASSWORD"], database="postgres", **options
    )


async def cached_statements(port):
    conn = await connect(port, statement_cache_size=5)
    # More texts than the cache holds: they are closed, and made again.
    for i in range(60):
        assert await conn.fetchval(f"SELECT $1::int + {i % 11}", i) == i + i % 11
    statement = await conn.prepare("SELECT $1::text || $2::text AS x")
    assert await statement.fetchval("a", "b") == "ab"
    assert [p.name for p in statement.get_parameters()] == ["text", "text"]
    assert statement.get_attributes()[0].name == "x"
    await conn.execute("DROP TABLE IF EXISTS asy_s; CREATE TABLE asy_s (a int)")
    await conn.executemany("INSERT INTO asy_s VALUES ($1)", [(i,) for i in range(2000)])
    assert await conn.fetchval("SELECT count(*) FROM asy_s") == 2000
    # Another connection changes the table under the cached plan: asyncpg prepares anew.
    assert len(await conn.fetchrow("SELECT * FROM asy_s")) == 1
    other = await connect(port)
    await other.execute("ALTER TABLE asy_s ADD COLUMN b int DEFAULT 1")
    await other.close()
    for _ in range(2):
        try:
            assert len(await conn.fetchrow("SELECT * FROM asy_s")) == 2
        except asyncpg.InvalidCachedStatementError:
            pass
    assert len(await conn.fetchrow("SELECT * FROM asy_s")) == 2
    await conn.reload_schema_state()
    await conn.close()


async def types_of_the_database(port):
    conn = await connect(port)
    await conn.execute(
        "DROP TABLE IF EXISTS asy_t; DROP TYPE IF EXISTS asy_mood; DROP TYPE IF EXISTS asy_pair;"
        " CREATE TYPE asy_mood AS ENUM ('sad', 'happy'); CREATE TYPE asy_pair AS (a int, b text)"
    )
    # Asks the catalog for what it does not know, between Parse and Bind.
    assert await conn.fetchval("SELECT $1::asy_mood", "happy") == "happy"
    assert tuple(await conn.fetchval("SELECT $1::asy_pair", (1, "x"))) == (1, "x")
    assert await conn.fetchval("SELECT $1::asy_mood[]", ["sad", "happy"]) == ["sad", "happy"]
    row = await conn.fetchrow(
        "SELECT $1::numeric, $2::timestamptz, $3::bytea, $4::jsonb, $5::int8range",
        decimal.Decimal("1.50"),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        b"\x00" * 1_000_000,
        '{"a": 1}',
        asyncpg.Range(1, 5),
    )
    assert row[0] == decimal.Decimal("1.50") and len(row[2]) == 1_000_000 and row[4].upper == 5
    assert len(await conn.fetchval("SELECT $1::text", "y" * 3_000_000)) == 3_000_000
    await conn.close()


async def transactions_and_cursors(port):
    conn = await connect(port)
    async with conn.transaction():
        seen = 0
        async for record in conn.cursor("SELECT generate_series(1, 777)", prefetch=50):
            seen += 1
            assert record[0] == seen
        cursor = await conn.cursor("SELECT generate_series(1, 20)")
        await cursor.forward(5)
        assert (await cursor.fetchrow())[0] == 6 and len(await cursor.fetch(100)) == 14
        try:
            async with conn.transaction():
                await conn.execute("SELECT 1/0")
        except asyncpg.DivisionByZeroError:
            pass
        assert await conn.fetchval("SELECT 5") == 5
    async with conn.transaction(isolation="serializable", readonly=True):
        try:
            await conn.execute("CREATE TABLE asy_no (i int)")
        except asyncpg.ReadOnlySQLTransactionError:
            pass
    try:
        await conn.execute("SELECT * FROM asy_nowhere")
    except asyncpg.UndefinedTableError as error:
        assert error.position == "15" and error.sqlstate == "42P01"
    await conn.close()


async def copies(port):
    conn = await connect(port)
    await conn.execute("DROP TABLE IF EXISTS asy_c; CREATE TABLE asy_c (a int, b text)")
    await conn.copy_records_to_table("asy_c", records=((i, "x" * 300) for i in range(5000)))
    size = 0

    async def sink(data):
        nonlocal size
        size += len(data)

    assert await conn.copy_from_query("SELECT * FROM asy_c WHERE a < $1", 2500, output=sink) == "COPY 2500"
    assert size > 2500 * 300

    async def source():
        yield b"1\tfine\n"
        raise ValueError("the client gives up")

    try:
        await conn.copy_to_table("asy_c", source=source())
        raise AssertionError("it is given up")
    except ValueError:
        pass
    assert await conn.fetchval("SELECT count(*) FROM asy_c") == 5000
    await conn.close()


async def listeners(port):
    conn, other = await connect(port), await connect(port)
    heard = asyncio.Queue()
    await conn.add_listener("asy_news", lambda *args: heard.put_nowait(args[3]))
    for i in range(5):
        await other.execute("SELECT pg_notify('asy_news', $1)", str(i))
    assert [await asyncio.wait_for(heard.get(), 20) for _ in range(5)] == list("01234")
    logs = asyncio.Queue()
    conn.add_log_listener(lambda _, message: logs.put_nowait(message.message))
    await conn.execute("DO $$ BEGIN RAISE NOTICE 'noted'; END $$")
    assert await asyncio.wait_for(logs.get(), 20) == "noted"
    await conn.reset()
    await conn.close()
    await other.close()


async def cancels(port):
    conn = await connect(port)
    # A time-out of the client cancels on the server, with a request of its own.
    for _ in range(3):
        try:
            await conn.fetchval("SELECT pg_sleep(60)", timeout=0.1)
            raise AssertionError("it takes too long")
        except asyncio.TimeoutError:
            pass
        assert await conn.fetchval("SELECT 1") == 1
    task = asyncio.ensure_future(conn.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.05)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    assert await conn.fetchval("SELECT 2") == 2
    await conn.close()


async def pools(port):
    # A pool resets each connection that is given back: advisory locks, cursors, channels, settings.
    async with asyncpg.create_pool(
        host="127.0.0.1",
        port=port,
        user="postgres",
        password=os.environ["PGPASSWORD"],
        database="postgres",
        min_size=4,
        max_size=4,
        server_settings={"application_name": "asy", "jit": "off"},
    ) as pool:
        await pool.execute("DROP TABLE IF EXISTS asy_p")
        await pool.execute("CREATE TABLE asy_p (i int)")

        async def work(number):
            for i in range(15):
                async with pool.acquire() as conn, conn.transaction():
                    await conn.execute("INSERT INTO asy_p VALUES ($1)", number)
                    assert await conn.fetchval("SHOW application_name") == "asy"

        await asyncio.gather(*(work(number) for number in range(12)))
        assert await pool.fetchval("SELECT count(*) FROM asy_p") == 180
        async with pool.acquire() as conn:
            await conn.execute("SET work_mem = '3MB'")
            assert await conn.fetchval("SHOW work_mem") == "3MB"
        seen = {await pool.fetchval("SHOW work_mem") for _ in range(8)}
        assert seen == {"4MB"}, seen


asyncio.run(
    run_async(
        [
            cached_statements,
            types_of_the_database,
            transactions_and_cursors,
            copies,
            listeners,
            cancels,
            pools,
        ]
    )
)
