//! `segue journal`: every decision, with time, actor and reason.

mod words;

use super::{control, fault, print, print_json};
use crate::exit::Exit;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_postgres::control::Entry;
use serde_json::Value;

/// Prints the journal.
pub(crate) async fn run(spec: &Spec, json: bool) -> Exit {
    match read(spec).await {
        Ok(entries) if json => {
            entries.iter().for_each(|record| print_json(&object(record)));
            Exit::Done
        }
        Ok(entries) => {
            let mut actor = String::new();
            for record in &entries {
                print(&line(record, &mut actor));
            }
            Exit::Done
        }
        Err(f) => fault(&f, json),
    }
}

/// A record on one line. Who wrote it is said when it is another one than before.
fn line(Entry { seq, at_us, entry }: &Entry, actor: &mut String) -> String {
    let mut parts = vec![words::said(&entry.body)];
    if *actor != entry.actor {
        parts.push(format!("[{}]", entry.actor));
        actor.clone_from(&entry.actor);
    }
    let said = parts.join(" ");
    let line = format!("{seq:>5}  {}  {:<19} {}", time_text(*at_us), entry.kind, said.trim());
    format!("{}\n", line.trim_end())
}

/// A record as an object.
pub(crate) fn object(Entry { seq, at_us, entry }: &Entry) -> Value {
    serde_json::json!({ "seq": seq, "at_us": at_us, "version": entry.version, "actor": entry.actor,
        "kind": entry.kind, "body": entry.body })
}

async fn read(spec: &Spec) -> Outcome<Vec<Entry>> {
    control(spec).await?.journal(0).await
}

/// A moment as `2026-11-21 03:04:05Z` (civil-from-days, Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
pub(crate) fn time_text(at_us: i64) -> String {
    let seconds = at_us.div_euclid(1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::control::NewEntry;

    #[test]
    fn a_record_is_one_line_and_its_writer_is_named_once() {
        let mut actor = String::new();
        let mut line = |seq, kind: &str, body| {
            let entry =
                NewEntry { version: 1, actor: "db2 process 4711".into(), kind: kind.to_owned(), body };
            line(&Entry { seq, at_us: 1_709_210_096_000_000, entry }, &mut actor)
        };
        let by = "ada@db1";
        assert_eq!(
            line(7, "command", serde_json::json!({ "command": "resume", "arguments": {}, "by": by })),
            "    7  2024-02-29 12:34:56Z  command             resume, by ada@db1 [db2 process 4711]\n"
        );
        assert_eq!(
            line(8, "following", serde_json::json!({ "token": 9 })),
            "    8  2024-02-29 12:34:56Z  following\n"
        );
    }

    #[test]
    fn moments_read_as_dates() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00Z");
        assert_eq!(time_text(1_709_210_096_000_000), "2024-02-29 12:34:56Z");
    }
}
