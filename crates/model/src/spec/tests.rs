//! Specs that are read, and what comes of them. Specs that are refused are in `tests/bad_specs` of this crate.

use super::*;
use crate::name::QualifiedName;

fn environment(name: &str) -> Option<String> {
    match name {
        "SOURCE_URL" => Some("postgres://app:s3cret@old.example/shop".to_owned()),
        "TARGET_URL" => Some("host=new.example password='s3cret' dbname=shop".to_owned()),
        "WORKERS" => Some("8".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Spec {
    Spec::parse("segue.yaml", text, &environment).unwrap_or_else(|error| panic!("{error}"))
}

const SMALL: &str = "
migration: orders-move
source: { postgres: \"${SOURCE_URL}\" }
target: { postgres: \"${TARGET_URL}\" }
tables: [public.orders]
";

#[test]
fn a_small_spec_gets_safe_defaults() {
    let spec = parse(SMALL);
    assert_eq!(spec.name.as_str(), "orders-move");
    assert_eq!(spec.name.identifier(), "orders_move");
    assert_eq!(spec.profile, Profile::Prod);
    assert_eq!(spec.source.expose(), "postgres://app:s3cret@old.example/shop");
    assert_eq!(spec.control.expose(), spec.target.expose());
    let orders = QualifiedName::new("public", "orders");
    let mapping = Mapping { source: orders.clone(), target: orders };
    assert_eq!(spec.selection.tables, [TableEntry { line: 5, choice: TableChoice::One(mapping) }]);
    assert_eq!(spec.copy, Copy { workers: 4, region_target: Duration::from_secs(1) });
    assert_eq!(spec.apply, Apply { batch_bytes_max: 16 << 20 });
    assert_eq!(spec.limits, Limits { retained_wal_bytes_max: 10 << 30, memory_bytes_max: 256 << 20 });
    assert_eq!(spec.verify, Verify { live: true, live_keys_per_second_max: 200, range_rows: 20_000 });
    let gates = Bounds { has_router: false, ..Bounds::of(Profile::Prod) };
    assert_eq!(
        spec.switch,
        Switch { max_write_hold: Duration::from_secs(2), accept_session_state: false, gates }
    );
    assert_eq!(spec.guard, Guard { ddl: true });
    assert_eq!(spec.schema, TargetSchema { create: Create::None }, "tables are there");
    assert_eq!(spec.rollback, Rollback::default(), "nothing takes a switch back by itself");
    assert_eq!(spec.router, None, "applications go to the database");
}

#[test]
fn a_router_is_read_with_its_defaults() {
    let router = |text: &str| parse(&format!("{SMALL}router: {text}")).router.unwrap();
    let least = router("{ listen: \"127.0.0.1:6432\", users: users.txt }");
    assert_eq!((least.auth, least.pool, &least.tls), (RouterAuth::Scram, RouterPool::Session, &None));
    assert_eq!(least.users.as_deref(), Some(std::path::Path::new("users.txt")));
    assert_eq!((least.clients_max, least.connections_max), (10_000, 20));
    assert!(least.may_listen_on("10.1.2.3:6432".parse().unwrap()), "passwords are checked");
    let more = router(
        "{ listen: \"[::1]:6432\", auth: trust, pool: transaction, tls: { certificate: a, key: b }, queue_max_ms: 2s }",
    );
    assert_eq!(
        (more.auth, more.pool, more.users.is_none()),
        (RouterAuth::Trust, RouterPool::Transaction, true)
    );
    assert!(more.tls.is_some_and(|tls| tls.required), "who names a certificate wants it used");
    assert_eq!(more.queue_max, Duration::from_secs(2));
    assert!(!router("{ listen: \"localhost:1\", auth: trust }").may_listen_on("10.1.2.3:1".parse().unwrap()));
}

#[test]
fn a_router_serves_and_compares_reads_by_defaults_that_are_safe() {
    let router = |more: &str| {
        parse(&format!("{SMALL}router: {{ listen: \"127.0.0.1:6432\", users: users.txt, {more} }}"))
            .router
            .unwrap()
    };
    let least = router("");
    let ms = Duration::from_millis;
    assert_eq!(
        (least.reads.answer_max, least.reads.wait_max, least.reads.stale_max),
        (ms(200), ms(50), ms(2000))
    );
    assert_eq!(
        (least.mirror.float_tolerance, least.mirror.timestamp_tolerance),
        (None, None),
        "not in a byte"
    );
    assert!(!least.mirror.show_values && least.mirror.mismatch_percent_max == 0.0);
    let more = router(
        "reads: { answer_max_ms: 1s, wait_max_ms: 0, stale_max_ms: 5s }, mirror: { float_tolerance: 1e-9, \
         timestamp_tolerance_ms: 1, show_values: true, mismatch_percent_max: 0.1 }",
    );
    assert_eq!(
        (more.reads.answer_max, more.reads.wait_max, more.reads.stale_max),
        (ms(1000), Duration::ZERO, ms(5000))
    );
    let mirror = more.mirror;
    assert_eq!((mirror.float_tolerance, mirror.timestamp_tolerance), (Some(1e-9), Some(ms(1))));
    assert!(mirror.show_values && mirror.mismatch_percent_max == 0.1);
    assert_eq!(router("mirror: { float_tolerance: 0 }").mirror.float_tolerance, None, "0 tolerates nothing");
}

#[test]
fn rollback_triggers_are_read_with_their_defaults() {
    use crate::switch::rollback::{Limit, Rule, Then};
    let spec = parse(&format!(
        "{SMALL}
rollback:
  watch_ms: 30min
  triggers:
    - drift_ppm_above: 10
      then: alert
    - query: SELECT count(*) FROM errors
      name: checkout errors
      on: control
      below: -0.5
      for: 1
      every_ms: 1s
      then: reverse
"
    ));
    assert_eq!(spec.rollback.watch, Duration::from_secs(1800));
    let drift = RollbackTrigger {
        name: "drift above 10 ppm".into(),
        measure: Measure::Drift,
        every: Duration::from_secs(5),
        rule: Rule { limit: Limit::Above(10.0), samples: 3, then: Then::Alert },
    };
    let query = RollbackTrigger {
        name: "checkout errors".into(),
        measure: Measure::Query { sql: "SELECT count(*) FROM errors".into(), on: Database::Control },
        every: Duration::from_secs(1),
        rule: Rule { limit: Limit::Below(-0.5), samples: 1, then: Then::Reverse },
    };
    assert_eq!(spec.rollback.triggers, [drift, query]);
    let least =
        parse(&format!("{SMALL}rollback: {{ triggers: [{{ drift_ppm_above: 0.5, then: reverse }}] }}"));
    assert_eq!(least.rollback.watch, Duration::from_secs(3600));
    assert_eq!(least.rollback.triggers[0].rule.limit, Limit::Above(0.5));
}

#[test]
fn a_profile_moves_the_defaults() {
    for (profile, workers) in [("dev", 2), ("staging", 2), ("prod", 4)] {
        assert_eq!(parse(&format!("{SMALL}profile: {profile}")).copy.workers, workers, "{profile}");
    }
}

#[test]
fn everything_can_be_written() {
    let spec = parse(
        r#"
migration: m
profile: ${PROFILE:-staging}
source:
  postgres: ${SOURCE_URL}
target: {postgres: "${TARGET_URL}"}
control:
  postgres: postgres://control.example/segue
tables:
  - public.*
  - "*.order_*"
  - '"Shop"."Größe"'
  - from: public.customers
    to: crm.customer
  - {from: a.b}
exclude: [public.tmp_*, other]
copy: {workers: "${WORKERS}", region_target_ms: 2s}
apply:
  batch_bytes_max: 1MiB
limits: {retained_wal_bytes_max: 1GiB, memory_bytes_max: 134217728}
verify: {live: false, live_keys_per_second_max: 1000, range_rows: 5000}
switch: {max_write_hold_ms: 5s, accept_session_state: true}
guard: {ddl: false}
schema: {create: missing}
"#,
    );
    assert_eq!(spec.profile, Profile::Staging);
    assert_eq!(spec.control.expose(), "postgres://control.example/segue");
    let listed: Vec<String> = spec.selection.tables.iter().map(|entry| entry.choice.to_string()).collect();
    assert_eq!(listed, ["public.*", "*.order_*", r#""Shop"."Größe""#, "public.customers", "a.b"]);
    let lines: Vec<usize> = spec.selection.tables.iter().map(|entry| entry.line).collect();
    assert_eq!(lines, [10, 11, 12, 13, 15]);
    let excluded: Vec<String> = spec.selection.exclude.iter().map(ToString::to_string).collect();
    assert_eq!(excluded, ["public.tmp_*", "public.other"]);
    assert_eq!(spec.copy, Copy { workers: 8, region_target: Duration::from_secs(2) });
    assert_eq!(spec.apply, Apply { batch_bytes_max: 1 << 20 });
    assert_eq!(spec.limits, Limits { retained_wal_bytes_max: 1 << 30, memory_bytes_max: 128 << 20 });
    assert_eq!(spec.verify, Verify { live: false, live_keys_per_second_max: 1000, range_rows: 5000 });
    let gates = Bounds { has_router: false, ..Bounds::of(Profile::Staging) };
    assert_eq!(
        spec.switch,
        Switch { max_write_hold: Duration::from_secs(5), accept_session_state: true, gates }
    );
    assert_eq!(spec.guard, Guard { ddl: false });
    assert_eq!(spec.schema, TargetSchema { create: Create::Missing });
}

#[test]
fn what_gates_ask_for_follows_the_profile_and_can_be_written() {
    let router = "router: { listen: \"127.0.0.1:6432\", auth: trust }\n";
    let written = parse(&format!(
        "{SMALL}{router}switch:
  gates:
    lag_ms_max: 250
    lag_window_ms: 30s
    drift_window_ms: 0
    matches_window_ms: 2h
    verified_age_ms_max: 48h
    rehearsal_age_ms_max: 1h
    transaction_age_ms_max: 5s
    replica_lag_ms_max: 2s
"
    ));
    let s = Duration::from_secs;
    let expected = Bounds {
        lag_ms_max: 250,
        lag_window: s(30),
        drift_window: Duration::ZERO,
        matches_window: Some(s(7_200)),
        verified_age_max: s(172_800),
        rehearsal_age_max: Some(s(3_600)),
        transaction_age_max: s(5),
        replica_lag_ms_max: 2_000,
        ..Bounds::of(Profile::Prod)
    };
    assert_eq!(written.switch.gates, expected);
    assert_eq!(parse(&format!("{SMALL}{router}")).switch.gates, Bounds::of(Profile::Prod));
    let dev = parse(&format!("{SMALL}profile: dev\nswitch: {{ gates: {{ rehearsal_age_ms_max: 1h }} }}"));
    assert_eq!(dev.switch.gates.rehearsal_age_max, Some(s(3_600)), "what is written is asked for");
}

#[test]
fn limits_of_the_throttle_follow_the_profile_and_can_be_written() {
    let ms = Duration::from_millis;
    let prod = parse(SMALL).throttle;
    assert_eq!((prod.replica_lag_max, prod.apply_lag_max, prod.answer_max), (ms(1_000), ms(10_000), ms(500)));
    assert_eq!((prod.active_sessions_max, prod.lock_waits_max, prod.queries.len()), (100, 10, 0));
    assert_eq!((prod.probe_write, prod.probe_write_max), (true, ms(250)));
    let dev = parse(&format!("{SMALL}profile: dev")).throttle;
    assert_eq!((dev.replica_lag_max, dev.probe_write), (ms(10_000), false));
    let written = parse(&format!(
        "{SMALL}
throttle:
  replica_lag_ms_max: 2s
  replicas_ignored: [reports, late]
  apply_lag_ms_max: 1min
  active_sessions_max: 7
  lock_waits_max: 3
  answer_ms_max: 100
  probe_write: false
  probe_write_ms_max: 50ms
  queries:
    - {{ name: checkout p99, query: SELECT 1, above: 250 }}
    - {{ name: free, query: SELECT 2, on: target, below: -0.5, every_ms: 5s }}
"
    ))
    .throttle;
    assert_eq!((written.replica_lag_max, written.apply_lag_max), (ms(2_000), ms(60_000)));
    assert_eq!(written.replicas_ignored, ["reports", "late"]);
    assert_eq!((written.active_sessions_max, written.lock_waits_max, written.answer_max), (7, 3, ms(100)));
    assert_eq!((written.probe_write, written.probe_write_max), (false, ms(50)));
    use crate::switch::rollback::Limit;
    let query = |name: &str, sql: &str, on, limit, every| ThrottleQuery {
        name: name.into(),
        sql: sql.into(),
        on,
        limit,
        every,
    };
    assert_eq!(
        written.queries,
        [
            query("checkout p99", "SELECT 1", Database::Source, Limit::Above(250.0), ms(1_000)),
            query("free", "SELECT 2", Database::Target, Limit::Below(-0.5), ms(5_000)),
        ]
    );
}

#[test]
fn an_empty_section_means_its_defaults() {
    let spec = parse(&format!("{SMALL}copy:\n  # workers: 2\nverify: {{}}\n"));
    assert_eq!(spec.copy.workers, 4);
}

#[test]
fn a_spec_never_prints_a_password() {
    let shown = format!("{:?}", parse(SMALL));
    assert!(shown.contains("app:***@old.example"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn migration_names_fit_slot_names() {
    let longest = "a".repeat(40);
    for (text, good) in [
        ("orders-move", true),
        ("m2", true),
        (longest.as_str(), true),
        ("", false),
        ("2m", false),
        ("-m", false),
        ("Orders", false),
        ("a_b", false),
        ("größe", false),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
    ] {
        assert_eq!(MigrationName::parse(text).is_some(), good, "{text}");
    }
}

/// The example of the design, which uses all that a spec shall be able to say one day.
const EXAMPLE: &str = r#"
# segue.yaml: the JSON Schema is published by `segue schema`, so editors complete and check it
migration: orders-move
profile: prod                       # dev | staging | prod: defaults for pools, budgets, windows, gates
source: { postgres: "${SOURCE_URL}" }
target: { postgres: "${TARGET_URL}" }
tables:
  - public.orders                   # same name, same shape
  - from: public.customers
    to: crm.customer
    columns:                        # target column: SQL over the source row, evaluated by PostgreSQL
      id: id
      full_name: "first_name || ' ' || last_name"
      status: "coalesce(status, 'active')"
    reverse: { first_name: "split_part(full_name, ' ', 1)", last_name: "split_part(full_name, ' ', 2)", status: status }
    where: "tenant_id = 42"
"#;

#[test]
fn the_example_of_the_design_is_refused_only_for_what_is_not_supported_yet() {
    let error = Spec::parse("segue.yaml", EXAMPLE, &environment).unwrap_err();
    let messages: Vec<&str> = error.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(
        messages,
        ["`columns` is not supported yet", "`reverse` is not supported yet", "`where` is not supported yet"]
    );
}

/// The keys of a section's schema.
fn properties(schema: &serde_json::Value) -> Vec<String> {
    let keys = schema["properties"].as_object().map(|map| map.keys().cloned().collect::<Vec<_>>());
    let mut keys = keys.unwrap_or_default();
    keys.sort();
    keys
}

#[test]
fn the_schema_knows_the_keys_that_the_reader_knows() {
    let schema = json_schema();
    let of = |keys: Vec<&str>| {
        let mut keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
        keys.sort();
        keys
    };
    let root = &schema["properties"];
    assert_eq!(properties(&schema), of(raw::RawSpec::keys()));
    assert_eq!(properties(&root["source"]), of(raw::RawSide::keys()));
    assert_eq!(properties(&root["tables"]["items"]["anyOf"][1]), of(raw::RawMapping::keys()));
    assert_eq!(properties(&root["copy"]), of(raw::RawCopy::keys()));
    assert_eq!(properties(&root["apply"]), of(raw::RawApply::keys()));
    assert_eq!(properties(&root["limits"]), of(raw::RawLimits::keys()));
    assert_eq!(properties(&root["verify"]), of(raw::RawVerify::keys()));
    assert_eq!(properties(&root["switch"]), of(raw::RawSwitch::keys()));
    assert_eq!(properties(&root["switch"]["properties"]["gates"]), of(raw::RawGates::keys()));
    assert_eq!(properties(&root["throttle"]), of(raw::RawThrottle::keys()));
    let query = &root["throttle"]["properties"]["queries"]["items"];
    assert_eq!(properties(query), of(raw::RawThrottleQuery::keys()));
    assert_eq!(properties(&root["guard"]), of(raw::RawGuard::keys()));
    assert_eq!(properties(&root["schema"]), of(raw::RawTargetSchema::keys()));
    assert_eq!(properties(&root["router"]), of(raw::RawRouter::keys()));
    let router = &root["router"]["properties"];
    assert_eq!(properties(&router["tls"]), of(raw::RawRouterTls::keys()));
    assert_eq!(properties(&router["reads"]), of(raw::RawRouterReads::keys()));
    assert_eq!(properties(&router["mirror"]), of(raw::RawRouterMirror::keys()));
}

#[test]
fn the_schema_describes_requires_and_bounds() {
    let schema = json_schema();
    assert_eq!(schema["required"], serde_json::json!(["migration", "source", "target", "tables"]));
    assert_eq!(schema["additionalProperties"], false);
    let profile = &schema["properties"]["profile"];
    assert_eq!(profile["anyOf"][0]["enum"], serde_json::json!(["dev", "staging", "prod"]));
    assert_eq!(profile["default"], "prod");
    let workers = &schema["properties"]["copy"]["properties"]["workers"];
    assert_eq!((&workers["minimum"], &workers["maximum"]), (&1.into(), &64.into()));
    assert!(!schema.to_string().contains("\"null\""), "{schema:#}");
    for (key, property) in schema["properties"].as_object().unwrap() {
        assert!(property["description"].is_string(), "{key} has no description: {property:#}");
    }
}

#[test]
fn the_defaults_in_the_schema_are_those_of_prod() {
    let schema = json_schema();
    let prod = bounds::defaults(Profile::Prod);
    let default =
        |section: &str, key: &str| schema["properties"][section]["properties"][key]["default"].clone();
    let bytes = |value: serde_json::Value| parse_bytes(value.as_str().unwrap()).unwrap();
    assert_eq!(default("copy", "workers"), prod.copy_workers);
    assert_eq!(default("copy", "region_target_ms"), prod.region_target.as_millis() as u64);
    assert_eq!(bytes(default("apply", "batch_bytes_max")), prod.batch_bytes_max);
    assert_eq!(bytes(default("limits", "retained_wal_bytes_max")), prod.retained_wal_bytes_max);
    assert_eq!(bytes(default("limits", "memory_bytes_max")), prod.memory_bytes_max);
    assert_eq!(default("verify", "live"), prod.live);
    assert_eq!(default("verify", "live_keys_per_second_max"), prod.live_keys_per_second_max);
    assert_eq!(default("verify", "range_rows"), prod.range_rows);
    assert_eq!(default("switch", "max_write_hold_ms"), prod.max_write_hold.as_millis() as u64);
    assert_eq!(default("guard", "ddl"), prod.guard_ddl);
    let limits = prod.throttle;
    let ms =
        |key: &str| parse_duration(default("throttle", key).as_str().unwrap()).unwrap().as_millis() as u64;
    assert_eq!(ms("replica_lag_ms_max"), limits.replica_lag_ms);
    assert_eq!(ms("apply_lag_ms_max"), limits.apply_lag_ms);
    assert_eq!(default("throttle", "active_sessions_max"), limits.active_sessions);
    assert_eq!(default("throttle", "lock_waits_max"), limits.lock_waits);
    assert_eq!(ms("answer_ms_max"), limits.answer_ms);
    assert_eq!(default("throttle", "probe_write"), limits.probe_write);
    assert_eq!(ms("probe_write_ms_max"), limits.probe_write_ms);
    assert_eq!(default("schema", "create"), Create::None.name());
}

#[test]
fn the_defaults_of_gates_in_the_schema_are_those_of_prod() {
    let schema = json_schema();
    let gates = &schema["properties"]["switch"]["properties"]["gates"]["properties"];
    let default = |key: &str| match &gates[key]["default"] {
        serde_json::Value::String(text) => parse_duration(text).unwrap(),
        number => Duration::from_millis(number.as_u64().unwrap()),
    };
    let prod = Bounds::of(Profile::Prod);
    assert_eq!(default("lag_ms_max"), Duration::from_millis(prod.lag_ms_max));
    assert_eq!(default("lag_window_ms"), prod.lag_window);
    assert_eq!(default("drift_window_ms"), prod.drift_window);
    assert_eq!(Some(default("matches_window_ms")), prod.matches_window);
    assert_eq!(default("verified_age_ms_max"), prod.verified_age_max);
    assert_eq!(Some(default("rehearsal_age_ms_max")), prod.rehearsal_age_max);
    assert_eq!(default("transaction_age_ms_max"), prod.transaction_age_max);
    assert_eq!(default("replica_lag_ms_max"), Duration::from_millis(prod.replica_lag_ms_max));
}
