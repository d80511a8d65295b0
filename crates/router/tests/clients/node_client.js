// node-postgres as applications use it. Prints `ok TARGET NAME` for each behaviour; the test counts them.
'use strict';
const assert = require('assert');
const { Client, Pool } = require('pg');
const Cursor = require('pg-cursor');

const options = (port) => ({
  host: '127.0.0.1', port, user: 'postgres', password: process.env.PGPASSWORD, database: 'postgres',
});

async function connected(port, work, more = {}) {
  const client = new Client({ ...options(port), ...more });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

const behaviours = {
  async parameters(port) {
    await connected(port, async (client) => {
      for (let i = 0; i < 20; i++) {
        const { rows } = await client.query('SELECT $1::int + 1 AS n, $2::text AS t', [i, null]);
        assert.deepStrictEqual(rows, [{ n: i + 1, t: null }]);
      }
      const { rows } = await client.query({ text: 'SELECT $1::int, $2::int', values: [1, 2], rowMode: 'array' });
      assert.deepStrictEqual(rows, [[1, 2]]);
      const several = await client.query('SELECT 1 AS a; SELECT 2 AS b; SELECT 3 AS c');
      assert.deepStrictEqual(several.map((result) => result.rows[0]), [{ a: 1 }, { b: 2 }, { c: 3 }]);
    });
  },

  async namedStatements(port) {
    await Promise.all([1, 2, 3].map((add) => connected(port, async (client) => {
      // One name, another text for each client: names are a connection's own.
      for (let i = 0; i < 30; i++) {
        const query = { name: 'add', text: `SELECT $1::int + ${add} AS n`, values: [i] };
        assert.strictEqual((await client.query(query)).rows[0].n, i + add);
      }
      const broken = { name: 'broken', text: 'SELECT * FROM node_nowhere WHERE a = $1', values: [1] };
      for (let i = 0; i < 3; i++) {
        await assert.rejects(client.query(broken), { code: '42P01' });
      }
      assert.strictEqual((await client.query({ name: 'add', text: `SELECT $1::int + ${add} AS n`, values: [1] })).rows[0].n, 1 + add);
    })));
  },

  async largeValues(port) {
    await connected(port, async (client) => {
      const bytes = Buffer.alloc(2_000_000, 0xab);
      const text = 'ü'.repeat(1_000_000);
      const { rows } = await client.query({ text: 'SELECT $1::bytea AS b, $2::text AS t', values: [bytes, text] });
      assert.ok(rows[0].b.equals(bytes) && rows[0].t === text);
      const many = await client.query("SELECT i, repeat('z', 500) FROM generate_series(1, 20000) i");
      assert.strictEqual(many.rows.length, 20000);
      const binary = await client.query({ text: 'SELECT $1::int AS n', values: [77], binary: true });
      assert.strictEqual(binary.rows[0].n, 77);
    });
  },

  async errors(port) {
    await connected(port, async (client) => {
      await client.query('DROP TABLE IF EXISTS node_e; CREATE TABLE node_e (id int PRIMARY KEY, n int CHECK (n > 0))');
      await assert.rejects(client.query('SELECT nonsense'), { code: '42703', position: '8', severity: 'ERROR' });
      await client.query('INSERT INTO node_e VALUES (1, 1)');
      await assert.rejects(client.query('INSERT INTO node_e VALUES ($1, $2)', [1, 1]), {
        code: '23505', constraint: 'node_e_pkey', table: 'node_e', schema: 'public', detail: 'Key (id)=(1) already exists.',
      });
      await assert.rejects(client.query('INSERT INTO node_e VALUES ($1, $2)', [2, -1]), { code: '23514' });
      await assert.rejects(client.query('SELECT $1::int', ['x']), { code: '22P02' });
      await assert.rejects(client.query('SELECT $1::int + $2::int', [1]), { code: '08P01' });
      await client.query('BEGIN');
      await assert.rejects(client.query('SELECT 1/0'), { code: '22012' });
      await assert.rejects(client.query('SELECT 1'), { code: '25P02' });
      await client.query('ROLLBACK');
      assert.strictEqual((await client.query('SELECT count(*)::int AS n FROM node_e')).rows[0].n, 1);
    });
  },

  async cursors(port) {
    await connected(port, async (client) => {
      // A portal read in parts, outside of a transaction: it lives until the client's Sync.
      const cursor = client.query(new Cursor('SELECT i FROM generate_series($1::int, 1000) i', [1]));
      let seen = 0;
      for (;;) {
        const rows = await cursor.read(77);
        if (rows.length === 0) break;
        seen += rows.length;
        assert.strictEqual(rows[rows.length - 1].i, seen);
      }
      assert.strictEqual(seen, 1000);
      await cursor.close();
      const left = client.query(new Cursor('SELECT generate_series(1, 1000) AS i'));
      assert.strictEqual((await left.read(5)).length, 5);
      await left.close();
      assert.strictEqual((await client.query('SELECT 1 AS n')).rows[0].n, 1);
    });
  },

  async notifications(port) {
    await connected(port, async (listener) => {
      const heard = [];
      const all = new Promise((resolve) => listener.on('notification', (message) => {
        heard.push(message.payload);
        if (heard.length === 3) resolve();
      }));
      await listener.query('LISTEN "Node News"');
      await connected(port, async (speaker) => {
        for (let i = 0; i < 3; i++) await speaker.query("SELECT pg_notify('Node News', $1)", [String(i)]);
      });
      await all;
      assert.deepStrictEqual(heard, ['0', '1', '2']);
    });
  },

  async queuedQueries(port) {
    await connected(port, async (client) => {
      // Handed over at once; the client sends one after the other. One that fails disturbs no other.
      const results = await Promise.allSettled([
        client.query('SELECT 1 AS n'), client.query('SELECT 1/0'), client.query('SELECT $1::int AS n', [3]),
        client.query({ name: 'four', text: 'SELECT 4 AS n' }), client.query('SELECT * FROM node_nowhere'),
        client.query('SELECT 6 AS n'),
      ]);
      const said = results.map((r) => (r.status === 'fulfilled' ? r.value.rows[0].n : r.reason.code));
      assert.deepStrictEqual(said, [1, '22012', 3, 4, '42P01', 6]);
    });
  },

  async pools(port) {
    const pool = new Pool({ ...options(port), max: 6, application_name: 'node', statement_timeout: 30000 });
    await pool.query('CREATE TABLE IF NOT EXISTS node_p (i int)');
    await pool.query('TRUNCATE node_p');
    await Promise.all(Array.from({ length: 24 }, async (_, number) => {
      for (let i = 0; i < 10; i++) {
        const client = await pool.connect();
        try {
          await client.query('BEGIN');
          await client.query('INSERT INTO node_p VALUES ($1)', [number]);
          assert.strictEqual((await client.query('SHOW application_name')).rows[0].application_name, 'node');
          await client.query(i % 5 === 4 ? 'ROLLBACK' : 'COMMIT');
        } finally {
          client.release();
        }
      }
    }));
    assert.strictEqual((await pool.query('SELECT count(*)::int AS n FROM node_p')).rows[0].n, 192);
    await pool.end();
  },

  async timeouts(port) {
    await connected(port, async (client) => {
      await assert.rejects(client.query('SELECT pg_sleep(60)'), { code: '57014' });
      assert.strictEqual((await client.query('SELECT 1 AS n')).rows[0].n, 1);
    }, { statement_timeout: 50 });
  },
};

(async () => {
  let failed = false;
  for (const target of process.env.TARGETS.split(' ')) {
    const [name, port] = target.split('=');
    for (const [behaviour, run] of Object.entries(behaviours)) {
      try {
        await run(Number(port));
        console.log('ok', name, behaviour);
      } catch (error) {
        failed = true;
        console.log('FAILED', name, behaviour, error);
      }
    }
  }
  process.exit(failed ? 1 : 0);
})();
