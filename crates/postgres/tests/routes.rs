//! What routers are told and what they answer, on a real server.

#![allow(clippy::expect_used, reason = "a test says with it what it relies on")]

use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::reads::ReadRules;
use segue_model::switch::route::Route;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::{
    Acquired, Control, LEASE_TTL, Lease, NewEntry, RouterReport, RouterSeat, Told, shut_out,
};
use segue_testkit::cluster::{Cluster, Options};
use serde_json::json;
use std::time::Duration;

struct Setting {
    cluster: Cluster,
    endpoint: Endpoint,
    control: Control,
}

impl Setting {
    async fn new() -> Setting {
        let cluster = Cluster::start(Options::default()).await;
        let endpoint = Endpoint::parse(&cluster.url("postgres")).expect("a URL");
        let control = Control::connect(&endpoint, "m").await.expect("control");
        Setting { cluster, endpoint, control }
    }

    async fn acquired(&self, holder: &str) -> Lease {
        match self.control.acquire(holder).await.expect("acquire") {
            Acquired::Lease(lease) => lease,
            Acquired::Standby(driver) => panic!("{driver:?} holds it"),
        }
    }

    async fn let_the_lease_expire(&self) {
        let late = LEASE_TTL + Duration::from_secs(1);
        let sql = format!("UPDATE segue.heartbeat SET beat_at = beat_at - interval '{} s'", late.as_secs());
        self.cluster.execute(&sql).await;
    }
}

#[tokio::test]
async fn a_route_reaches_the_routers_and_is_waited_for_until_all_that_live_keep_to_it() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    let seat = async || {
        RouterSeat::take(&setting.endpoint, "m").await.expect("a seat").expect("the schema is there")
    };
    let (first, second, routing) =
        (seat().await, seat().await, setting.control.routing().await.expect("routing"));
    assert_eq!(first.told().await.expect("asked"), None, "nothing was told yet");
    let route = Route::to(Side::Source, Epoch(1));
    let revision = lease.revision() + 1;
    routing.tell(Told { revision, route: route.held(2000) }).await.expect("told");
    first.wait(Duration::from_secs(20)).await.expect("it lives");
    let told = first.told().await.expect("asked").expect("told");
    assert_eq!((told.revision, told.route.owner, told.route.epoch), (revision, Side::Source, Epoch(1)));
    assert!(told.route.hold_ms_max.is_some_and(|ms| ms <= 2000), "{told:?}");
    let old = "UPDATE segue.route SET at = at - interval '2 s'";
    setting.cluster.execute(old).await;
    assert_eq!(
        first.told().await.expect("asked"),
        Some(Told { revision, route }),
        "a hold that is over is none"
    );

    let none = routing.wait_for(revision, Duration::ZERO).await.expect("asked");
    assert_eq!(none, [], "nobody has to be waited for where there are no routers");
    let says = |id: &str, revision| RouterReport { id: id.into(), revision, body: json!({ "clients": 3 }) };
    first.report(&says("a", revision)).await.expect("said");
    second.report(&says("b", revision - 1)).await.expect("said");
    let late = routing.wait_for(revision, Duration::from_millis(20)).await.expect("asked");
    assert_eq!(late, [says("b", revision - 1)]);
    let keeps = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        second.report(&says("b", revision)).await.expect("said");
    };
    let (waited, ()) = tokio::join!(routing.wait_for(revision, Duration::from_secs(30)), keeps);
    assert_eq!(waited.expect("asked"), [], "both keep to it");

    // One that was not heard of for long, and one that has left, keep nobody waiting.
    let next = revision + 1;
    routing.tell(Told { revision: next, route }).await.expect("told");
    setting
        .cluster
        .execute("UPDATE segue.router SET seen_at = seen_at - interval '4 s' WHERE id = 'a'")
        .await;
    second.leave("b").await.expect("left");
    assert_eq!(routing.wait_for(next, Duration::ZERO).await.expect("asked"), []);
    assert_eq!(setting.control.routers().await.expect("asked"), []);
}

#[tokio::test]
async fn what_an_earlier_driver_tells_late_or_a_request_that_was_given_up_changes_no_route() {
    let setting = Setting::new().await;
    let old = setting.acquired("one").await;
    setting.let_the_lease_expire().await;
    let new = setting.acquired("two").await;
    let seat = RouterSeat::take(&setting.endpoint, "m").await.expect("a seat").expect("the schema is there");
    let routing = setting.control.routing().await.expect("routing");
    let told = Told { revision: new.revision() + 2, route: Route::to(Side::Target, Epoch(2)) };
    routing.tell(told).await.expect("told");
    for revision in [old.revision() + 999, new.revision() + 1] {
        let late = Told { revision, route: Route::to(Side::Source, Epoch(1)) };
        assert_eq!(routing.tell(late).await.expect_err("too late").code, "SEGUE-SUPERSEDED");
    }
    assert_eq!(seat.told().await.expect("asked"), Some(told));
}

#[tokio::test]
async fn a_route_that_cannot_be_understood_is_no_route() {
    let setting = Setting::new().await;
    let seat = RouterSeat::take(&setting.endpoint, "m").await.expect("a seat").expect("the schema is there");
    let newer = r#"'{"owner": "target", "epoch": 2, "canary": true}'"#;
    setting.cluster.execute(&format!("INSERT INTO segue.route VALUES ('m', 1, now(), {newer})")).await;
    let fault = seat.told().await.expect_err("it is from a newer build");
    assert_eq!(fault.code, "SEGUE-ROUTE");
}

#[tokio::test]
async fn rules_for_reads_reach_the_routers_outlive_their_driver_and_are_its_alone_to_change() {
    let setting = Setting::new().await;
    let old = setting.acquired("one").await;
    shut_out(&setting.endpoint, "m", old.token, true).await.expect("it is the newest");
    let seat = RouterSeat::take(&setting.endpoint, "m").await.expect("a seat").expect("the schema is there");
    assert_eq!(seat.reads().await.expect("asked"), None, "nothing was told yet");
    assert_eq!(setting.control.reads().await.expect("asked"), ReadRules::default());
    let tenants = [("acme".to_owned(), Some(Side::Target))].into();
    let rules = ReadRules::default().with_share(10, &tenants).with_mirror(5, 7);
    setting.control.set_reads(&old, &rules).await.expect("set");
    seat.wait(Duration::from_secs(20)).await.expect("it lives");
    let told = seat.reads().await.expect("asked").expect("told");
    assert_eq!(told.rules, rules);

    setting.let_the_lease_expire().await;
    let new = setting.acquired("two").await;
    shut_out(&setting.endpoint, "m", new.token, true).await.expect("it is the newest");
    let refused = setting.control.set_reads(&old, &ReadRules::default()).await.expect_err("it is too late");
    assert_eq!(refused.code, "SEGUE-SUPERSEDED");
    assert_eq!(setting.control.reads().await.expect("asked"), rules);
    setting.control.set_reads(&new, &ReadRules::default()).await.expect("set");
    let later = seat.reads().await.expect("asked").expect("told");
    assert!(later.revision != told.revision && later.rules == ReadRules::default(), "{later:?}");

    // With the record of the journal that says so, or not at all.
    let entry = NewEntry { version: 1, actor: "two".into(), kind: "reads".into(), body: json!({}) };
    let moved = setting.control.append_reads(&new, 7, &entry, &rules).await.expect_err("it ends elsewhere");
    assert_eq!(moved.code, "SEGUE-JOURNAL-MOVED");
    assert_eq!(setting.control.reads().await.expect("asked"), ReadRules::default());
    let late = setting.control.append_reads(&old, 0, &entry, &rules).await.expect_err("it is too late");
    assert_eq!(late.code, "SEGUE-SUPERSEDED");
    assert_eq!(setting.control.append_reads(&new, 0, &entry, &rules).await.expect("set"), 1);
    assert_eq!(setting.control.reads().await.expect("asked"), rules);
    assert_eq!(setting.control.last_record().await.expect("asked"), 1);

    setting.cluster.execute(r#"UPDATE segue.reads SET body = '{"share_percent": 1, "canary": true}'"#).await;
    assert_eq!(seat.reads().await.expect_err("it is from a newer build").code, "SEGUE-READS");
    setting.cluster.execute("DROP TABLE segue.reads").await;
    assert_eq!(seat.reads().await.expect("asked"), None, "the control database is of an earlier build");
}
