//! Checks that are about a pair of databases: one pair of servers, a pair of databases for each case.

use crate::world::{AS_EVER, Found, How, Place, World, fires_and_is_cured, more};
use segue_model::switch::Side;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::{LocalSet, spawn_local};

/// How a case is put right.
pub(crate) enum Cure {
    /// By what the findings say.
    Remedies,
    /// By hand: the remedy is for a person to decide, or not SQL.
    Sql(&'static str, &'static str),
}
use Cure::{Remedies, Sql};

/// Something that is wrong.
pub(crate) struct Case {
    pub(crate) check: &'static str,
    /// Checks for which the same is another trouble.
    also: &'static [&'static str],
    how: How,
    /// Done to the source and to the target.
    spoil: (&'static str, &'static str),
    says: &'static str,
    cure: Cure,
    /// Done to both afterwards.
    after: &'static str,
}

const fn case(check: &'static str, source: &'static str, target: &'static str, says: &'static str) -> Case {
    Case { check, also: &[], how: AS_EVER, spoil: (source, target), says, cure: Remedies, after: "" }
}

const MOVER: How = How { mover: true, ..AS_EVER };

/// A trigger that takes down what happens, in a table that stays.
const NOTED: &str = "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN INSERT INTO public.elsewhere VALUES (1, 1); RETURN NULL; END';
     CREATE TRIGGER noted AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION noted()";

pub(crate) const CASES: &[Case] = &[
    Case {
        how: How {
            prelude: "SET search_path = fake, pg_catalog",
            ..AS_EVER
        },
        cure: Sql("DROP SCHEMA fake CASCADE", ""),
        ..case(
            "versions",
            "CREATE SCHEMA fake; CREATE FUNCTION fake.current_setting(name text) RETURNS text LANGUAGE sql AS $$
                 SELECT CASE name WHEN 'server_version_num' THEN '110022' ELSE pg_catalog.current_setting(name) END $$",
            "",
            "the source is PostgreSQL 11 [SEGUE-VERSION]",
        )
    },
    case("tables", "ALTER TABLE orders SET UNLOGGED", "", "is an unlogged table on the source"),
    Case {
        cure: Sql("", "ALTER TABLE orders2 RENAME TO orders"),
        ..case("tables", "", "ALTER TABLE orders RENAME TO orders2", "public.orders does not exist on the target")
    },
    case("keys", "ALTER TABLE orders REPLICA IDENTITY NOTHING", "", "REPLICA IDENTITY NOTHING"),
    case("keys", "", "ALTER TABLE orders DROP CONSTRAINT orders_pkey", "has no unique index on (id) on the target"),
    case("columns", "", "ALTER TABLE orders ALTER note TYPE varchar(5)", "in another form on the target"),
    case("columns", "", "ALTER TABLE orders DROP note", "has no column \"note\" on the target"),
    case("target-empty", "", "INSERT INTO orders VALUES (1)", "already holds rows on the target"),
    Case {
        cure: Sql("SELECT pg_drop_replication_slot('segue_shop_fwd')", ""),
        ..case(
            "leftovers",
            "SELECT pg_create_physical_replication_slot('segue_shop_fwd')",
            "",
            "belongs to something else",
        )
    },
    Case {
        how: MOVER,
        ..case("privileges", "ALTER TABLE orders OWNER TO keeper", "ALTER TABLE orders OWNER TO keeper", "only its owner can publish")
    },
    Case {
        how: MOVER,
        also: &["type-numbers"],
        cure: Sql(
            "ALTER TABLE customers DROP mood; DROP SCHEMA kinds CASCADE",
            "ALTER TABLE customers DROP mood; DROP SCHEMA kinds CASCADE",
        ),
        ..case("privileges", KINDS, KINDS, "mover may not use the schema kinds of the source")
    },
    Case { how: MOVER, ..case("row-security", FORCED, FORCED, "has row-level security that applies to Segue's role") },
    case(
        "row-security",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON orders FOR UPDATE TO app USING (id > 0) WITH CHECK (id > 1)",
        "",
        "the policy own of public.orders is not there",
    ),
    case("triggers-firing", "", "ALTER TABLE customers ENABLE ALWAYS TRIGGER touched", "is ENABLEd ALWAYS on the target"),
    case(
        "triggers-firing",
        "CREATE RULE quiet AS ON DELETE TO orders WHERE OLD.id < 0 DO INSTEAD NOTHING",
        "CREATE RULE quiet AS ON DELETE TO orders WHERE OLD.id < 0 DO INSTEAD NOTHING;
         ALTER TABLE orders ENABLE REPLICA RULE quiet",
        "the rule quiet of public.orders is ENABLEd REPLICA",
    ),
    case(
        "subscriptions",
        "",
        "CREATE SUBSCRIPTION other CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false, slot_name = 'other');
         INSERT INTO pg_subscription_rel SELECT s.oid, 'orders'::regclass, 'r', NULL FROM pg_subscription s WHERE subname = 'other';
         ALTER SUBSCRIPTION other ENABLE",
        "writes into orders on the target as well",
    ),
    case("partitions", "", "DROP TABLE p2", "has no partition FOR VALUES FROM (100) TO (200)"),
    Case {
        also: &["type-numbers"],
        cure: Sql(IN_RANGES, IN_RANGES),
        ..case("hash-partitions", BY_ENUM, BY_ENUM, "public.parts is partitioned on the source by the hash of a key")
    },
    Case {
        cure: Sql("ALTER TABLE parts2 RENAME TO parts", ""),
        ..case("tables", "ALTER TABLE parts RENAME TO parts2", "", "public.parts does not exist on the source")
    },
    Case {
        // What both have is not told, in whatever words they write it down.
        after: "ALTER TABLE orders DROP CONSTRAINT known; DROP INDEX few",
        ..case(
        "constraints",
        "ALTER TABLE orders ADD CONSTRAINT known CHECK (note::varchar IN ('a', 'b'));
         CREATE UNIQUE INDEX few ON orders (id) WHERE amount BETWEEN 1 AND 2 AND customer > 0",
        "ALTER TABLE orders ADD CONSTRAINT known CHECK (((note)::character varying)::text
            = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text]));
         CREATE UNIQUE INDEX few ON orders (id) WHERE ((amount >= 1) AND (amount <= 2) AND (customer > 0));
         ALTER TABLE orders DROP CONSTRAINT orders_amount_check; ALTER TABLE customers DROP CONSTRAINT customers_email_key;
         ALTER TABLE orders DROP CONSTRAINT orders_customer_fkey; ALTER TABLE orders ADD CONSTRAINT short CHECK (length(note) < 10);
         CREATE UNIQUE INDEX lonely ON customers (lower(name))",
        "UNIQUE lonely of public.customers is kept on the target only",
    )
    },
    case(
        "constraints",
        "CREATE UNIQUE INDEX dud ON customers (vip);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'dud'::regclass",
        "",
        "UNIQUE dud of public.customers is not valid on the source",
    ),
    case(
        "foreign-keys",
        "ALTER TABLE elsewhere ADD FOREIGN KEY (customer) REFERENCES customers",
        "",
        "public.elsewhere, which is not migrated, refers to public.customers",
    ),
    Case {
        cure: Sql(
            "ALTER TABLE parts DROP CONSTRAINT parts_id_fkey",
            "ALTER TABLE parts DROP CONSTRAINT parts_id_fkey",
        ),
        ..case(
        "foreign-keys",
        "ALTER TABLE parts ADD FOREIGN KEY (id) REFERENCES elsewhere",
        "ALTER TABLE parts ADD FOREIGN KEY (id) REFERENCES elsewhere",
        "public.parts refers to public.elsewhere",
    )
    },
    case(
        "generated",
        "",
        "ALTER TABLE orders DROP total; ALTER TABLE orders ADD total numeric GENERATED ALWAYS AS (amount * 3) STORED",
        "public.orders.total is computed as (amount * (2)::numeric) on the source and as (amount * (3)::numeric)",
    ),
    case(
        "generated",
        "",
        "ALTER TABLE orders DROP total",
        "public.orders.total is computed as (amount * (2)::numeric) on the source, and is not there on the target",
    ),
    Case {
        cure: Sql("", "ALTER TABLE parts DROP mark; ALTER TABLE orders DROP mark"),
        ..case(
            "target-columns",
            "",
            "ALTER TABLE parts ADD mark text DEFAULT 'new';
             ALTER TABLE orders ADD mark text",
            "public.parts has columns on the target only (mark). A row keeps what it has there when it changes, its key too; one that \
             is inserted, or an UPDATE on the source moves to another partition",
        )
    },
    case("identity", "", "ALTER TABLE customers ALTER id SET GENERATED ALWAYS", "GENERATED ALWAYS identity column on the target"),
    Case {
        cure: Sql("", "ALTER SEQUENCE customers_id_seq MAXVALUE 9223372036854775807"),
        ..case(
            "sequences",
            "SELECT setval('customers_id_seq', 100)",
            "ALTER SEQUENCE customers_id_seq MAXVALUE 10",
            "gives values from 1 to 10",
        )
    },
    case("defaults", "", "ALTER TABLE customers ALTER vip SET DEFAULT true", "the default of public.customers.vip is false"),
    case("inheritance", "CREATE TABLE others () INHERITS (customers)", "", "public.others inherits from public.customers"),
    Case {
        cure: Sql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata", ""),
        ..case(
            "large-objects",
            "ALTER TABLE customers ADD photo oid; SELECT lo_create(0)",
            "ALTER TABLE customers ADD photo oid",
            "public.customers.photo may name large objects, of which the source has 1",
        )
    },
    Case {
        cure: Sql("ALTER TABLE customers DROP m", "ALTER TABLE customers DROP m"),
        ..case(
            "type-numbers",
            "CREATE TYPE mood AS ENUM ('a'); ALTER TABLE customers ADD m mood",
            "CREATE TYPE filler AS ENUM ('x'); CREATE TYPE mood AS ENUM ('a'); ALTER TABLE customers ADD m mood",
            "the types mood have other numbers",
        )
    },
    case(
        "extensions",
        "CREATE EXTENSION citext; CREATE EXTENSION hstore",
        "CREATE EXTENSION hstore VERSION '1.4'",
        "the extension citext of the source is not there",
    ),
    case("grants", "GRANT SELECT, INSERT ON orders TO app", "", "app may INSERT, SELECT on public.orders on the source, and not on the target"),
    case("triggers", "", "DROP TRIGGER touched ON customers", "the trigger touched of public.customers is not there"),
    case(
        "triggers",
        "",
        "CREATE TRIGGER extra AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION touch(); ALTER TABLE customers DISABLE TRIGGER touched",
        "the trigger extra of public.orders is on the target only",
    ),
    case("views", "", "DROP VIEW customer_names", "the view public.customer_names reads the tables"),
    case(
        "functions",
        "CREATE FUNCTION count_orders() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.orders'",
        "",
        "the function public.count_orders() names orders",
    ),
    Case {
        cure: Sql("DROP VIEW beside; DROP FUNCTION beside(); SELECT pg_stat_statements_reset()", ""),
        ..case(
            "joins",
            "CREATE EXTENSION pg_stat_statements;
             CREATE VIEW beside AS SELECT c.id FROM customers c JOIN elsewhere e ON e.customer = c.id;
             CREATE FUNCTION beside() RETURNS void LANGUAGE sql AS 'INSERT INTO public.elsewhere SELECT id, 1 FROM public.customers';
             SELECT 'seen' FROM orders o JOIN elsewhere e USING (customer)",
            "CREATE EXTENSION pg_stat_statements;
             CREATE VIEW beside AS SELECT c.id FROM customers c JOIN elsewhere e ON e.customer = c.id;
             CREATE FUNCTION beside() RETURNS void LANGUAGE sql AS 'INSERT INTO public.elsewhere SELECT id, 1 FROM public.customers'",
            "a statement names orders and, not migrated, elsewhere",
        )
    },
    Case {
        // That the target has neither is told once, with the reason why it cannot.
        cure: Sql("DROP VIEW beside; DROP FUNCTION beside()", ""),
        ..case(
            "joins",
            "CREATE VIEW beside AS SELECT c.id FROM customers c JOIN elsewhere e ON e.customer = c.id;
             CREATE FUNCTION beside() RETURNS void LANGUAGE sql AS 'INSERT INTO public.elsewhere SELECT id, 1 FROM public.customers'",
            "",
            "the view public.beside joins the tables with public.elsewhere, which are not migrated",
        )
    },
    Case {
        cure: Sql(
            "DROP TRIGGER noted ON orders; DROP FUNCTION noted()",
            "DROP TRIGGER noted ON orders; DROP FUNCTION noted()",
        ),
        ..case(
            "joins",
            NOTED,
            NOTED,
            "the trigger noted of public.orders runs public.noted(), which names, not migrated, elsewhere: from",
        )
    },
    Case {
        after: "DROP PUBLICATION cdc",
        ..case("publications", "CREATE PUBLICATION cdc FOR TABLE orders", "", "the publication cdc sends public.orders from the source")
    },
    Case {
        cure: Sql("DROP PUBLICATION everything", ""),
        ..case(
            "publications",
            "CREATE PUBLICATION everything FOR ALL TABLES",
            "",
            "the publication everything on the source sends all tables, Segue's own too",
        )
    },
    Case {
        cure: Sql("", "DROP PUBLICATION everything; DROP SCHEMA segue"),
        ..case(
            "publications",
            "",
            "CREATE SCHEMA segue; CREATE PUBLICATION everything FOR TABLES IN SCHEMA segue",
            "the publication everything on the target sends Segue's own tables",
        )
    },
    Case {
        how: How { way_back: true, ..AS_EVER },
        ..case("way-back", "", "ALTER TABLE orders REPLICA IDENTITY NOTHING", "writes could not be handed over")
    },
    case("slots", "SELECT pg_create_physical_replication_slot('forgotten', true)", "", "the slot forgotten is read by nobody"),
    case(
        "transactions",
        "BEGIN; INSERT INTO elsewhere VALUES (1); PREPARE TRANSACTION 'left over'",
        "",
        "the prepared transaction 'left over' of postgres",
    ),
    Case {
        cure: Sql("DROP SCHEMA segue CASCADE", ""),
        ..case(
            "leftovers",
            "CREATE SCHEMA segue; CREATE TABLE segue.format (version int); INSERT INTO segue.format VALUES (99)",
            "",
            "the schema segue has format 99, this build knows up to 1 [SEGUE-FORMAT]",
        )
    },
    Case {
        cure: Sql("DROP SCHEMA segue CASCADE", ""),
        ..case(
            "leftovers",
            "CREATE SCHEMA segue; CREATE TABLE segue.format (version int); CREATE TABLE segue.pair (migration text, mark text,
                 target text, system_id text, database_oid oid, made_at timestamptz);
             INSERT INTO segue.pair VALUES ('shop', 'a mark', 'db1:5432/shop', '7', 5, now())",
            "",
            "that is db1:5432/shop",
        )
    },
    Case {
        how: MOVER,
        ..case("visibility", "REVOKE pg_read_all_stats FROM mover", "", "cannot see what other sessions do on the source")
    },
    case("connections", "", LIMITED, "the target takes 50 sessions and the source 97"),
    case("timeouts", IMPATIENT, IMPATIENT, "lock_timeout is 500ms on the source, less than the 2000 ms"),
    case("timeouts", HURRIED, "", "statement_timeout is '7s' on the source"),
    case("isolation", "", SERIALIZABLE, "default_transaction_isolation is 'read committed' on the source"),
    case("time-zone", "", ELSEWHERE, "on the target: the application would read and write other times"),
    case("session-settings", "", OTHER_PATH, "search_path is '\"$user\", public' on the source"),
    Case {
        how: How { prelude: "SET search_path = fake, pg_catalog", ..AS_EVER },
        cure: Sql("DROP SCHEMA fake CASCADE", ""),
        ..case(
            "clocks",
            "CREATE SCHEMA fake; CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
                 $$SELECT pg_catalog.clock_timestamp() + interval '1 hour'$$",
            "",
            "ms ahead of this machine's",
        )
    },
    Case {
        cure: Sql("DROP ROLE rds_superuser", ""),
        ..case("managed", "CREATE ROLE rds_superuser", "", "the source looks like Amazon RDS")
    },
];

const BY_ENUM: &str = "DROP TABLE parts; CREATE TYPE grade AS ENUM ('a', 'b');
    CREATE TABLE parts (id int, v grade, PRIMARY KEY (id, v)) PARTITION BY HASH (v);
    CREATE TABLE p1 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)";
const IN_RANGES: &str = "DROP TABLE parts; DROP TYPE grade; CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE p2 PARTITION OF parts FOR VALUES FROM (100) TO (200)";
const KINDS: &str =
    "CREATE SCHEMA kinds; CREATE TYPE kinds.mood AS ENUM ('a'); ALTER TABLE customers ADD mood kinds.mood";
const FORCED: &str = "ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY";
const LIMITED: &str =
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 50', current_database()); END $$";
const IMPATIENT: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = ''500ms''', current_database()); END $$";
const HURRIED: &str = "DO $$ BEGIN
    EXECUTE format('ALTER ROLE app IN DATABASE %I SET statement_timeout = ''7s'' ', current_database()); END $$";
const SERIALIZABLE: &str = "DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$";
const ELSEWHERE: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database()); END $$";
const OTHER_PATH: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = crm, public', current_database()); END $$";

#[tokio::test]
async fn each_check_fires_alone_and_its_remedy_puts_it_right() {
    let world = Rc::new(World::start().await);
    let mut pairs = [Pair::new(&world, AS_EVER).await, Pair::new(&world, MOVER).await];
    assert_eq!(pairs[0].checks(), ["disk"], "a clean pair: {:#?}", pairs[0].ever);
    assert_eq!(
        pairs[1].checks(),
        ["ddl-guard", "disk"],
        "for a role without superuser: {:#?}",
        pairs[1].ever
    );
    let mut failed = Vec::new();
    let local = LocalSet::new();
    local
        .run_until(async {
            for case in CASES {
                let pair = &mut pairs[usize::from(case.how.mover)];
                if spawn_local(run(case, world.clone(), pair.clone())).await.is_err() {
                    failed.push(format!("{}: {}", case.check, case.says));
                    // One case that fails hides no other.
                    *pair = Pair::new(&world, if case.how.mover { MOVER } else { AS_EVER }).await;
                }
            }
        })
        .await;
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A pair of databases, which every case leaves as it was found, and what is found there ever.
#[derive(Clone)]
struct Pair {
    place: Rc<Place>,
    ever: Rc<Found>,
}

impl Pair {
    async fn new(world: &World, how: How) -> Pair {
        let place = world.place(how).await;
        let ever = world.look(&place, how).await;
        Pair { place: Rc::new(place), ever: Rc::new(ever) }
    }

    fn checks(&self) -> Vec<&str> {
        self.ever.iter().map(|(check, _)| *check).collect()
    }
}

async fn run(case: &'static Case, world: Rc<World>, pair: Pair) {
    let began = Instant::now();
    let both = async |[source, target]: [&str; 2]| {
        world.run(Side::Source, &pair.place, source).await;
        world.run(Side::Target, &pair.place, target).await;
    };
    both([case.spoil.0, case.spoil.1]).await;
    let look = async || more(world.look(&pair.place, case.how).await, &pair.ever);
    let cure = async |found| match case.cure {
        Remedies => world.apply_remedies(&pair.place, &found).await,
        Sql(source, target) => both([source, target]).await,
    };
    fires_and_is_cured((case.check, case.also, case.says), look, cure).await;
    both([case.after, case.after]).await;
    println!("{}: {} ms", case.check, began.elapsed().as_millis());
}
