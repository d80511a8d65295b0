//! Handing the writes over, and back, with the real binary between two real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::kill::Process;
use serde_json::json;
use support::Pair;
use support::orders::ask;

const TABLE: &str = "CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)";

async fn following() -> (Pair, Process) {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(TABLE).await;
    pair.source.execute("INSERT INTO public.t (v) SELECT 'seed' FROM generate_series(1, 1000)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    (pair, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_there_and_back_again() {
    let (pair, run) = following().await;
    pair.segue(&["verify"], 0);
    for round in 0..3 {
        let answer = ask(&pair.target, "switch", json!({ "rehearse": false, "overrides": [] })).await;
        assert_eq!(answer["outcome"], "switched", "{answer:#}\n{}", run.lines().join("\n"));
        println!("{answer:#}");
        pair.target.execute(&format!("INSERT INTO public.t (v) VALUES ('target {round}')")).await;
        let refused = pair.source.connect("postgres").await;
        let refused = refused.batch_execute("INSERT INTO public.t (v) VALUES ('lost')").await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code()), Some("25006"));
        let answer = ask(&pair.target, "reverse", json!({ "rehearse": false, "overrides": [] })).await;
        assert_eq!(answer["outcome"], "switched", "{answer:#}\n{}", run.lines().join("\n"));
        println!("{answer:#}");
        pair.source.execute(&format!("INSERT INTO public.t (v) VALUES ('source {round}')")).await;
        let refused = pair.target.connect("postgres").await;
        let refused = refused.batch_execute("INSERT INTO public.t (v) VALUES ('lost')").await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code()), Some("25006"));
    }
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    assert_eq!(pair.source.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("1006"));
}
