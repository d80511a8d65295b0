//! The gates, for the documentation: what has to hold, in words, beside what the table of gates says.

use super::cell;
use segue_model::spec::Profile;
use segue_model::switch::gates::{Bounds, Gate, Move, TABLE};
use std::fmt::Write;
use std::time::Duration;

/// What has to hold. The bounds are the profile's, or the spec's; a refusal names them.
fn holds(gate: Gate) -> &'static str {
    match gate {
        Gate::Lag => "the stream's lag stayed within its bound for a while",
        Gate::Drift => "the share of compared rows that differ stayed below its bound for a while",
        Gate::Matches => {
            "repeated reads answered alike for a while; green where the spec has no `router`, by which alone reads are repeated"
        }
        Gate::Mirror => {
            "no more of the reads that routers compare (`segue mirror`) differ than `router.mirror.mismatch_percent_max` allows; \
             counted over the routers that live, each since comparing was last turned on or since it was started; green where \
             nothing is compared"
        }
        Gate::Verified => "every table was compared in full, recently (`segue verify`)",
        Gate::Divergences => "no difference is open",
        Gate::WayBack => "the opposite stream stands and is caught up",
        Gate::Sequences => "every sequence can be set on the new side",
        Gate::Rehearsal => "a rehearsal succeeded recently (`segue switch writes --dry-run`)",
        Gate::Ddl => "the tables on both sides are those of the plan",
        Gate::Parity => {
            "the new side's tables have what the old side's have: indexes, constraints (valid ones too), triggers, rules, \
             row-level security, defaults, owners, privileges, sequences, comments. Where they lack a constraint, rows can be \
             written that could not go back"
        }
        Gate::LongTransactions => "no transaction on the owner is so old that the fence would wait for it",
        Gate::Replicas => "the new side's replicas are in step",
        Gate::Connections => "the new side has connections to spare",
        Gate::Wraparound => "no vacuum that prevents wraparound is running on the tables",
        Gate::Fence => {
            "nothing is known that writes past the fence: an enabled subscription that writes the tables, or a trigger of \
             the fence that somebody has disabled"
        }
        Gate::Sessions => {
            "no session holds what cannot move with it: advisory locks, temporary tables, cursors WITH HOLD, LISTEN"
        }
    }
}

fn words(what: Move) -> &'static str {
    match what {
        Move::FirstReads => "the first reads",
        Move::MoreReads => "more reads",
        Move::Writes => "`switch writes`",
        Move::Reverse => "`reverse`",
    }
}

/// A table of all gates, in the order in which they are shown.
pub(super) fn table() -> String {
    let mut text =
        "| gate | what has to hold | asked by | may be overridden |\n|---|---|---|---|\n".to_owned();
    for line in TABLE {
        let moves: Vec<&str> = line.asked_by.iter().map(|what| words(*what)).collect();
        let may = if line.protects_data { "never: it protects data" } else { "with a reason" };
        let _ =
            writeln!(text, "| `{}` | {} | {} | {may} |", line.name, cell(holds(line.gate)), moves.join(", "));
    }
    text.push_str(&bounds_table());
    text
}

/// What can be set, and what it is otherwise.
fn bounds_table() -> String {
    let mut text = "\nHow much is asked depends on the spec's `profile`, where `switch: { gates: { KEY: 30min } }` does not say it. A \
        rehearsal is asked the same.\n\n| gate | key | `dev` | `staging` | `prod` |\n|---|---|---|---|---|\n"
        .to_owned();
    let mut line = |gate: &str, key: &str, of: &dyn Fn(&Bounds) -> Option<Duration>| {
        let cells: Vec<String> = [Profile::Dev, Profile::Staging, Profile::Prod]
            .map(|profile| of(&Bounds::of(profile)).map_or_else(|| "not asked".to_owned(), span))
            .into();
        let _ = writeln!(text, "| {gate} | `{key}` | {} |", cells.join(" | "));
    };
    let ms = Duration::from_millis;
    line("`lag`: at most", "lag_ms_max", &|bounds| Some(ms(bounds.lag_ms_max)));
    line("`lag`: watched for", "lag_window_ms", &|bounds| Some(bounds.lag_window));
    line("`drift`: watched for", "drift_window_ms", &|bounds| Some(bounds.drift_window));
    line("`matches`: watched for, with a `router`", "matches_window_ms", &|bounds| bounds.matches_window);
    line("`verified`: at most so long ago", "verified_age_ms_max", &|bounds| Some(bounds.verified_age_max));
    line("`rehearsal`: at most so long ago", "rehearsal_age_ms_max", &|bounds| bounds.rehearsal_age_max);
    line("`long-transactions`: at most so old", "transaction_age_ms_max", &|bounds| {
        Some(bounds.transaction_age_max)
    });
    line("`replicas`: less behind than", "replica_lag_ms_max", &|bounds| Some(ms(bounds.replica_lag_ms_max)));
    text
}

/// A time of a bound: whole hours, minutes, seconds or milliseconds.
fn span(of: Duration) -> String {
    match of.as_secs() {
        0 if of.is_zero() => "the last moment".to_owned(),
        0 => format!("{} ms", of.as_millis()),
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
