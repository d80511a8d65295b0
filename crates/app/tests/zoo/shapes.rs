//! Every shape of table: names, keys, partitions, generated columns, triggers, and sixteen hundred columns.

use crate::route;
use crate::support::Pair;

/// A table, or a few that belong together.
struct Shape {
    /// On both sides; `{s}` is the schema.
    ddl: &'static str,
    /// More on the target alone.
    target: &'static str,
    /// Rows that are there before.
    before: &'static str,
    /// Changes that are streamed.
    after: &'static [&'static str],
}

const SHAPES: &[Shape] = &[
    // Names that need quotes, in every place.
    Shape {
        ddl: r#"CREATE SCHEMA "Schéma, ""q"""; CREATE TYPE "Schéma, ""q"""."Type ☃" AS ENUM ('a', 'b''c');
            CREATE TABLE "Schéma, ""q"""."Tàble\ 'x' ""y"", z" ("Id, ""1""" int, "back\slash" text, "it's" text, "☃ {curly}" "Schéma, ""q"""."Type ☃",
                "select" int, " " int, "$1" text, PRIMARY KEY ("Id, ""1""", "back\slash"))"#,
        target: "",
        before: r#"INSERT INTO "Schéma, ""q"""."Tàble\ 'x' ""y"", z" SELECT n, 'k\' || n, 'it''s', 'b''c', n, n, '$2' FROM generate_series(1, 20) n"#,
        after: &[
            r#"INSERT INTO "Schéma, ""q"""."Tàble\ 'x' ""y"", z" SELECT n, '"\', E'\\\n', 'a', NULL, 1, '' FROM generate_series(30, 50) n"#,
            r#"UPDATE "Schéma, ""q"""."Tàble\ 'x' ""y"", z" SET "it's" = '☃', "☃ {curly}" = NULL, " " = " " + 1 WHERE "Id, ""1""" > 10"#,
            r#"UPDATE "Schéma, ""q"""."Tàble\ 'x' ""y"", z" SET "back\slash" = "back\slash" || '"''\' WHERE "Id, ""1""" < 9"#,
            r#"DELETE FROM "Schéma, ""q"""."Tàble\ 'x' ""y"", z" WHERE "select" IN (1, 2, 3, 12, 13, 14, 15)"#,
        ],
    },
    // Generated columns, also in the middle; columns in another order and dropped ones on the target.
    Shape {
        ddl: "",
        target: "CREATE TABLE gen (gone int, note text, id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, n int, more text DEFAULT 'of the target''s own'); \
            ALTER TABLE gen DROP gone; ALTER TABLE gen DROP more",
        before: "CREATE TABLE gen (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, note text, gone text, n int); ALTER TABLE gen DROP gone; \
            INSERT INTO gen (id, note, n) SELECT n, 'n' || n, n FROM generate_series(1, 20) n",
        after: &[
            "INSERT INTO gen (id, note, n) SELECT n, NULL, n FROM generate_series(30, 50) n",
            "UPDATE gen SET n = n + 1 WHERE id > 10",
            "UPDATE gen SET id = id + 100, note = 'moved' WHERE id < 9",
            "DELETE FROM gen WHERE n IN (12, 13, 14, 15, 31, 32)",
        ],
    },
    // Identity columns that cannot be written: as the key, beside the key, without a key.
    Shape {
        ddl: "CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text); \
            CREATE TABLE ident_beside (id int PRIMARY KEY, no int GENERATED ALWAYS AS IDENTITY, note text); \
            CREATE TABLE ident_whole (no int GENERATED ALWAYS AS IDENTITY, note text); ALTER TABLE ident_whole REPLICA IDENTITY FULL",
        target: "",
        before: "INSERT INTO ident (note) SELECT 'n' || n FROM generate_series(1, 20) n; INSERT INTO ident_beside (id, note) SELECT n, 'n' FROM generate_series(1, 20) n; \
            INSERT INTO ident_whole (note) SELECT 'n' FROM generate_series(1, 20) n",
        after: &[
            "INSERT INTO ident (note) SELECT 'm' || n FROM generate_series(1, 20) n; INSERT INTO ident_beside (id, note) SELECT n, 'm' FROM generate_series(30, 50) n",
            "INSERT INTO ident OVERRIDING SYSTEM VALUE VALUES (-5, 'own'); INSERT INTO ident_whole (note) VALUES ('new')",
            "UPDATE ident SET note = note || '!' WHERE id > 10; UPDATE ident_beside SET note = note || '!' WHERE id < 9; UPDATE ident_whole SET note = note || '!' WHERE no < 9",
            "UPDATE ident SET id = DEFAULT WHERE id IN (3, 4, 5, 6, 7, 8, 9); UPDATE ident_beside SET no = DEFAULT WHERE id < 9; UPDATE ident_whole SET no = DEFAULT WHERE no IN (4, 5)",
            "UPDATE ident_beside SET id = id + 1000, note = NULL WHERE id > 40",
            "DELETE FROM ident WHERE id IN (1, 2, 11, 12, 13, 14); DELETE FROM ident_beside WHERE no < 9; DELETE FROM ident_whole WHERE no IN (1, 2, 21)",
        ],
    },
    // No primary key: another unique index, also one of several columns; whole rows, with duplicates and NULLs.
    Shape {
        ddl: "CREATE TABLE by_index (a int, b text NOT NULL, c int NOT NULL); CREATE UNIQUE INDEX by_index_key ON by_index (c, b); \
            ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key; \
            CREATE TABLE whole (a int, b text, c numeric, d json, e point); ALTER TABLE whole REPLICA IDENTITY FULL; \
            CREATE TABLE whole_keyed (id int PRIMARY KEY, big text); ALTER TABLE whole_keyed REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL",
        target: "",
        before: "INSERT INTO by_index SELECT n, 'b' || n, n FROM generate_series(1, 20) n; \
            INSERT INTO whole SELECT NULL, 'same', 1.0, '{}', '(1,2)' FROM generate_series(1, 5); INSERT INTO whole SELECT n, NULL, 1.00, NULL, NULL FROM generate_series(1, 9) n; \
            INSERT INTO whole_keyed SELECT n, repeat('x', 4000) FROM generate_series(1, 9) n",
        after: &[
            "INSERT INTO by_index SELECT NULL, 'b' || n, n FROM generate_series(30, 50) n; UPDATE by_index SET a = 7 WHERE c > 10; UPDATE by_index SET c = -c, b = b || '-' WHERE c < 9",
            "DELETE FROM by_index WHERE c IN (-1, -2, 40, 41, 42, 43, 44)",
            "INSERT INTO whole SELECT NULL, 'same', 1.0, '{}', '(1,2)' FROM generate_series(1, 2); INSERT INTO whole SELECT * FROM whole WHERE b IS NULL",
            "UPDATE whole SET c = 1.00 WHERE ctid = (SELECT min(ctid) FROM whole WHERE b = 'same')",
            "UPDATE whole SET b = 'other', d = '[]' WHERE a = 3; UPDATE whole SET a = NULL, e = NULL WHERE a IN (4, 5)",
            "DELETE FROM whole WHERE ctid = (SELECT max(ctid) FROM whole WHERE b = 'same'); DELETE FROM whole WHERE a IN (6, 7)",
            "UPDATE whole_keyed SET id = id + 100; UPDATE whole_keyed SET id = 1 WHERE id = 105; DELETE FROM whole_keyed WHERE id IN (102, 103)",
            "UPDATE whole SET b = NULL, c = NULL, d = NULL WHERE b = 'same'; UPDATE whole SET b = 'x' WHERE ctid = (SELECT min(ctid) FROM whole WHERE c IS NULL)",
        ],
    },
    // Partitions: by range with a default, by list below, by hash; the key moves rows.
    Shape {
        ddl: "CREATE TABLE part (id int, kind text, v int, PRIMARY KEY (id, kind)) PARTITION BY RANGE (id); \
            CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (10); \
            CREATE TABLE part_mid PARTITION OF part FOR VALUES FROM (10) TO (1000) PARTITION BY LIST (kind); \
            CREATE TABLE part_mid_a PARTITION OF part_mid FOR VALUES IN ('a', 'it''s'); CREATE TABLE part_mid_rest PARTITION OF part_mid DEFAULT; \
            CREATE TABLE part_rest (v int, extra int, kind text NOT NULL, id int NOT NULL); ALTER TABLE part_rest DROP extra; \
            ALTER TABLE part ATTACH PARTITION part_rest DEFAULT; \
            CREATE TABLE hashed (id int PRIMARY KEY, v text) PARTITION BY HASH (id); \
            CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 0); CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 1); \
            CREATE TABLE hashed_2 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 2)",
        target: "",
        before: "INSERT INTO part SELECT n, CASE n % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'it''s' ELSE 'zzz' END, n FROM generate_series(-20, 40) n; INSERT INTO part VALUES (2000, 'a', 1), (2001, 'b', 2); \
            INSERT INTO hashed SELECT n, 'v' || n FROM generate_series(1, 60) n",
        after: &[
            "INSERT INTO part SELECT n, 'new', n FROM generate_series(990, 1010) n; INSERT INTO hashed SELECT n, NULL FROM generate_series(100, 130) n",
            "UPDATE part SET v = v + 1 WHERE id BETWEEN 5 AND 30; UPDATE hashed SET v = v || '!' WHERE id % 2 = 0",
            "UPDATE part SET id = id + 1000 WHERE id BETWEEN 15 AND 25; UPDATE part SET kind = 'it''s' WHERE kind = 'zzz' AND id > 0; UPDATE hashed SET id = id + 1000 WHERE id < 9",
            "DELETE FROM part WHERE id IN (-3, 11, 12, 1016, 2000); DELETE FROM hashed WHERE id % 5 = 0",
            "TRUNCATE part_mid_a; TRUNCATE hashed_1",
            "INSERT INTO part VALUES (11, 'a', 5), (12, 'it''s', 6); INSERT INTO hashed SELECT n, 'again' FROM generate_series(2000, 2009) n",
        ],
    },
    // Inheritance: parents and children are tables of their own.
    Shape {
        ddl: "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (w int, PRIMARY KEY (id)) INHERITS (parent); CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child)",
        target: "",
        before: "INSERT INTO parent SELECT n, 'p' FROM generate_series(1, 9) n; INSERT INTO child SELECT n, 'c', n FROM generate_series(5, 15) n; INSERT INTO grandchild SELECT n, 'g', n FROM generate_series(9, 20) n",
        after: &[
            "INSERT INTO parent VALUES (100, 'p'); INSERT INTO child VALUES (100, 'c', 1); INSERT INTO grandchild VALUES (100, 'g', 2)",
            "UPDATE parent SET v = v || '!' WHERE id IN (6, 9, 100); DELETE FROM ONLY parent WHERE id = 5; DELETE FROM child WHERE id IN (7, 12)",
            "TRUNCATE ONLY parent",
            "INSERT INTO parent VALUES (1, 'first again')",
        ],
    },
    // What the target does by itself must not happen for what arrives: triggers, rules of references, defaults.
    Shape {
        ddl: "CREATE TABLE cause (id int PRIMARY KEY, v int DEFAULT 7); CREATE TABLE effect (id int PRIMARY KEY, cause int REFERENCES cause ON DELETE CASCADE ON UPDATE CASCADE); \
            CREATE TABLE self (id int PRIMARY KEY, boss int REFERENCES self ON DELETE SET NULL)",
        target: "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger of the target has fired'; END $$; \
            CREATE TRIGGER meddle BEFORE INSERT OR UPDATE OR DELETE ON cause FOR EACH ROW EXECUTE FUNCTION meddle(); \
            CREATE TRIGGER meddle_all AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON effect FOR EACH STATEMENT EXECUTE FUNCTION meddle(); \
            CREATE TRIGGER meddle BEFORE INSERT OR UPDATE OR DELETE ON self FOR EACH ROW EXECUTE FUNCTION meddle()",
        before: "INSERT INTO cause SELECT n, NULL FROM generate_series(1, 20) n; INSERT INTO effect SELECT n, n FROM generate_series(1, 20) n; INSERT INTO self SELECT n, nullif(n - 1, 0) FROM generate_series(1, 20) n",
        after: &[
            "INSERT INTO cause SELECT n FROM generate_series(30, 50) n; INSERT INTO effect SELECT n, n FROM generate_series(30, 50) n",
            "UPDATE cause SET id = id + 100 WHERE id < 9; DELETE FROM cause WHERE id IN (10, 11, 12, 13, 14, 15); DELETE FROM self WHERE id IN (3, 9)",
            "TRUNCATE effect",
            "INSERT INTO effect VALUES (1, 108); TRUNCATE cause CASCADE",
            "INSERT INTO cause VALUES (1, 1); INSERT INTO effect VALUES (1, 1)",
        ],
    },
    // Keys of every order: dates before Christ, uuids, text in the database's collation, long keys, enums, intervals of time.
    Shape {
        ddl: "CREATE TYPE size AS ENUM ('small', 'large'); CREATE TABLE dated (id date PRIMARY KEY, v int); CREATE TABLE keyed (a uuid, b text, c timestamptz, d size, e inet, v int, PRIMARY KEY (d, b, c, a, e)); \
            CREATE TABLE barred (id bit varying(9) PRIMARY KEY, v int); CREATE TABLE padded (id char(4) PRIMARY KEY, v int); CREATE TABLE timed (id interval PRIMARY KEY, v double precision UNIQUE); \
            CREATE TABLE arrayed (id int[] PRIMARY KEY, v int); CREATE TABLE ranged (id int4range PRIMARY KEY, v int, EXCLUDE USING gist (id WITH &&)); CREATE TABLE floated (id double precision PRIMARY KEY, v int)",
        target: "",
        before: "INSERT INTO dated VALUES ('-infinity', 1), ('4713-01-01 BC', 2), ('0001-12-31 BC', 3), ('0001-01-01', 4), ('infinity', 5); \
            INSERT INTO keyed SELECT md5(n::text)::uuid, CASE WHEN n % 2 = 0 THEN 'Ä' ELSE 'z' END || n, '0044-03-15 BC'::timestamptz + n * interval '100 years', 'large', '10.0.0.0/8', n FROM generate_series(1, 30) n; \
            INSERT INTO barred VALUES ('', 1), ('0', 2), ('00', 3), ('1', 4); INSERT INTO padded VALUES ('', 1), ('a', 2), ('ab', 3), ('ü', 4); \
            INSERT INTO timed VALUES ('1 mon', 1), ('29 days', 2), ('24:00:00', 'NaN'); INSERT INTO arrayed VALUES ('{}', 1), ('{1,NULL}', 2), ('[0:0]={1}', 3); \
            INSERT INTO ranged VALUES ('[1,5)', 1), ('[5,9)', 2), ('empty', 3); INSERT INTO floated VALUES (0, 1), ('NaN', 2), ('-Infinity', 3), (0.1, 4)",
        after: &[
            "UPDATE dated SET v = v + 1; UPDATE dated SET id = '0002-01-01 BC' WHERE id = 'infinity'; DELETE FROM dated WHERE id < '0001-01-01 BC'",
            "UPDATE keyed SET v = -v, d = 'small' WHERE v > 20; DELETE FROM keyed WHERE v < -25; INSERT INTO keyed SELECT a, lower(b), c, 'small', e, 1 FROM keyed WHERE v BETWEEN 1 AND 9",
            "UPDATE barred SET v = v + 10; DELETE FROM barred WHERE id = '00'; UPDATE padded SET v = v + 10; UPDATE padded SET id = 'b' WHERE id = 'a'; DELETE FROM padded WHERE id = ''",
            "BEGIN; DELETE FROM timed WHERE id = '1 day'; INSERT INTO timed VALUES ('1 day', 9); COMMIT; UPDATE timed SET v = 3 WHERE id = '30 days'; DELETE FROM arrayed WHERE id = '{}'; UPDATE arrayed SET v = 9",
            "BEGIN; UPDATE ranged SET id = '[1,3)' WHERE v = 1; UPDATE ranged SET id = '[3,9)' WHERE v = 2; COMMIT; DELETE FROM ranged WHERE id = 'empty'; UPDATE floated SET id = '-0' WHERE id = 0; UPDATE floated SET v = v + 1",
        ],
    },
];

/// A table as wide as a table can be.
fn wide() -> (String, String, [String; 4]) {
    let kinds = ["int", "text", "smallint", "boolean"];
    let columns: String = (1..1_600).map(|n| format!(", c{n} {}", kinds[n % 4])).collect();
    let values: String =
        (1..1_600).map(|n| [", i", ", 'a'", ", i % 100", ", i % 2 = 0"][n % 4].to_owned()).collect();
    let set: String =
        (1..1_600).filter(|n| n % 5 == 0).map(|n| format!("c{n} = NULL")).collect::<Vec<_>>().join(", ");
    let insert = |from: u32, to: u32| {
        format!("INSERT INTO wide SELECT i{values} FROM generate_series({from}, {to}) i")
    };
    (
        format!("CREATE TABLE wide (id int PRIMARY KEY{columns})"),
        insert(1, 20),
        [
            insert(30, 50),
            format!("UPDATE wide SET {set} WHERE id > 15"),
            "UPDATE wide SET id = id + 100, c1 = 'b' WHERE id < 9".into(),
            "DELETE FROM wide WHERE id > 40".into(),
        ],
    )
}

async fn shaped(pair: &Pair) {
    let (wide_ddl, wide_before, wide_after) = wide();
    for shape in SHAPES {
        route::on_both(pair, shape.ddl).await;
        route::batch(&pair.target, shape.target).await;
        route::batch(&pair.source, shape.before).await;
    }
    route::on_both(pair, &wide_ddl).await;
    route::batch(&pair.source, &wide_before).await;
    let schemas = ["public", "Schéma, \"q\""];
    let run = route::following(pair).await;
    route::arrives(pair, &run, &schemas).await;
    // One after the other, as they come …
    for change in SHAPES
        .iter()
        .flat_map(|shape| shape.after.iter().copied())
        .chain(wide_after.iter().map(String::as_str))
    {
        route::batch(&pair.source, change).await;
    }
    route::arrives(pair, &run, &schemas).await;
}

async fn travels(from: u16, to: u16) {
    let tables = ["public.*", r#"'"Schéma, ""q""".*'"#];
    let Some(pair) = route::pair(from, to, &tables).await else { return };
    shaped(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_travels_from_15_to_15() {
    travels(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_travels_from_12_to_18() {
    travels(12, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_travels_from_18_to_14() {
    travels(18, 14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_travels_from_16_to_17() {
    travels(16, 17).await;
}
