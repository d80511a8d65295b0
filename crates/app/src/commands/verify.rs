//! `segue verify`: asks the driver to compare both sides and shows what it finds.

use super::{asker, control, fault, fault_in, print, print_json, unreadable};
use crate::cli::{Verify, VerifyMode};
use crate::drive::VerifyOrder;
use crate::drive::complete::{self, Life};
use crate::exit::Exit;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::verify::report::{Mode, Repair, Report, Request};
use segue_model::spec::Spec;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::Duration;

/// A verification may take as long as it takes; the driver's death is noticed at once.
const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Differences shown on a screen.
const SHOWN_MAX: usize = 20;

/// The answer for an order whose driver has died.
const DIED: &str = "SEGUE-DRIVER-DIED";

/// Runs a verification.
pub(crate) async fn run(spec: &Spec, asked: &Verify, json: bool) -> Exit {
    let report = match ask(spec, asked, json).await {
        Ok(report) => report,
        Err(f) => return fault(&f, json),
    };
    if json {
        print_json(&object(&report));
    } else {
        print(&render(&report));
    }
    match verdict(&report) {
        Verdict::Equal | Verdict::ButHot => Exit::Done,
        Verdict::NotCompared => Exit::Fault,
        Verdict::Different => Exit::Divergence,
    }
}

/// A report as an object.
pub(crate) fn object(report: &Report) -> Value {
    let mut object = json!(report);
    object["equal"] = report.is_equal().into();
    object
}

/// Hot rows that a verification under load may leave without failing: this many, or one in so many rows.
const HOT_ROWS_FEW: u64 = 20;
const HOT_ROWS_ONE_IN: u64 = 10_000;

/// What a report comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Whatever was looked at is equal: every row, but for counts and samples.
    Equal,
    /// So is every row but a few that changed too often to be compared.
    ButHot,
    /// Too many rows could not be compared to say anything.
    NotCompared,
    /// A difference was found and is still there.
    Different,
}

fn verdict(report: &Report) -> Verdict {
    if !report.shows_no_difference() {
        return Verdict::Different;
    }
    match report.hot {
        0 => Verdict::Equal,
        hot if hot <= HOT_ROWS_FEW.max(report.rows / HOT_ROWS_ONE_IN) => Verdict::ButHot,
        _ => Verdict::NotCompared,
    }
}

fn order(spec: &Spec, asked: &Verify) -> VerifyOrder {
    let mode = match asked.mode {
        VerifyMode::Aggregate => Mode::Aggregate,
        VerifyMode::Digest => Mode::Digest,
        VerifyMode::Sample => Mode::Sample,
    };
    let repair = match (asked.repair, asked.dry_run) {
        (false, _) => Repair::Report,
        (true, true) => Repair::DryRun,
        (true, false) => Repair::Write,
    };
    let range_rows_max = spec.verify.range_rows;
    let request = Request { mode, repair, range_rows_max, ..Request::default() };
    VerifyOrder { tables: asked.tables.iter().map(ToString::to_string).collect(), request }
}

async fn ask(spec: &Spec, asked: &Verify, json: bool) -> Outcome<Report> {
    let control = control(spec).await?;
    // No driver is left to say so.
    if let life @ Life::Completed(_) = complete::life(&control).await? {
        life.is_open()?;
    }
    let mut order = order(spec, asked);
    let live = !json && std::io::stderr().is_terminal();
    loop {
        let id = control.ask("verify", &json!(order), &asker()).await?;
        let answer = control.await_answer(id, PATIENCE, |progress| show(progress, live)).await?;
        if live {
            eprint!("\r\x1b[K");
        }
        if goes_on(&mut order, &answer) {
            continue;
        }
        if let Some(fault) = fault_in(&answer) {
            return Err(unanswered(&order, fault));
        }
        return serde_json::from_value(answer).map_err(|e| unreadable(&e));
    }
}

/// Whether the order is given once more. A driver that died or lost a connection leaves what was compared; the next one
/// continues there. One that was to write may have ended because it did: that is for a person to repeat.
fn goes_on(order: &mut VerifyOrder, answer: &Value) -> bool {
    let has_died = answer.get("code").and_then(Value::as_str) == Some(DIED);
    order.request.resume |= has_died;
    has_died && order.request.repair != Repair::Write
}

/// What is said of an order that came to nothing.
fn unanswered(order: &VerifyOrder, fault: Fault) -> Fault {
    if fault.code != DIED || order.request.repair != Repair::Write {
        return fault;
    }
    let next_step = "`segue status` says whether `segue run` goes on; then `segue verify`, and `--repair` again: rows that were \
                     repaired are equal";
    Fault { next_step: next_step.to_owned(), ..fault }
}

fn show(progress: &Value, live: bool) {
    if live {
        let number = |name: &str| progress.get(name).and_then(Value::as_u64).unwrap_or(0);
        let of = number("rows_estimated");
        eprint!("\r\x1b[Kcompared {} of about {of} rows, {} differ", number("rows"), number("divergent"));
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for t in &report.tables {
        let c = &t.counts;
        let counted = t.counted.as_ref().map_or_else(String::new, |c| {
            let verdict =
                if c.settled { "equal counts".to_owned() } else { format!("not settled; {}", c.advice) };
            format!("  {} / {} rows: {verdict}", c.owner, c.other)
        });
        text = format!(
            "{text}{:<40} {:>12} rows compared  {:>6} differ  {:>6} repaired  {:>6} hot{counted}\n",
            t.table, c.rows, c.divergent, c.repaired, c.hot
        );
        // A count looks at none.
        if report.mode != Mode::Aggregate && !t.columns_not_compared.is_empty() {
            let columns = t.columns_not_compared.join(", ");
            text = format!("{text}    not compared, since they do not travel: {columns}\n");
        }
    }
    for d in report.divergences.iter().take(SHOWN_MAX) {
        text = format!("{text}  {d}\n");
        if let Some(sql) = &d.remedy {
            text = format!("{text}    {sql}\n");
        }
        if let Some(why) = &d.refused {
            text = format!("{text}    not repaired: {why}\n");
        }
    }
    if report.divergent > SHOWN_MAX as u64 {
        text =
            format!("{text}  … {} differences in all; `segue verify --json` lists them\n", report.divergent);
    }
    let forgotten: u64 = report.tables.iter().map(|t| t.counts.forgotten).sum();
    if forgotten > 0 {
        text = format!(
            "{text}  {forgotten} of the hot rows found no room to be compared at a switch: their tables do not count as verified\n"
        );
    }
    let seconds = report.took_ms as f64 / 1000.0;
    let verdict = match verdict(report) {
        // A count is no comparison.
        Verdict::Equal if report.mode == Mode::Aggregate => {
            let rows: u64 = report.tables.iter().filter_map(|t| t.counted.as_ref()).map(|c| c.owner).sum();
            return format!(
                "{text}the counts agree: {rows} rows on either side, {seconds:.1} s; no row was compared: `segue verify` does\n"
            );
        }
        Verdict::Equal if report.mode == Mode::Sample => "no difference in a sample".to_owned(),
        Verdict::Equal if report.tables.iter().any(|t| !t.columns_not_compared.is_empty()) => {
            "equal, but for the columns that were not compared".to_owned()
        }
        Verdict::Equal => "equal".to_owned(),
        Verdict::ButHot => format!("no difference; {} row(s) changed too often to be compared", report.hot),
        Verdict::NotCompared => {
            format!("NOT compared: {} rows could not be settled; look at `segue status`", report.hot)
        }
        Verdict::Different => "NOT equal".to_owned(),
    };
    format!(
        "{text}{verdict}: {} rows compared, drift {:.6} %, {seconds:.1} s\n",
        report.rows,
        report.drift * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_engine::verify::report::TableReport;

    #[test]
    fn an_order_whose_driver_has_died_goes_on_unless_it_was_to_write() {
        let died = json!({ "fault": "it has died", "code": DIED, "next_step": "ask again" });
        let other = json!({ "fault": "it is paused", "code": "SEGUE-PAUSED", "next_step": "resume" });
        for (repair, again) in [(Repair::Report, true), (Repair::DryRun, true), (Repair::Write, false)] {
            let request = Request { repair, ..Request::default() };
            let mut order = VerifyOrder { request, ..VerifyOrder::default() };
            assert!(!goes_on(&mut order, &other) && !order.request.resume);
            assert_eq!(goes_on(&mut order, &died), again, "{repair:?}");
        }
        let request = Request { repair: Repair::Write, ..Request::default() };
        let order = VerifyOrder { request, ..VerifyOrder::default() };
        let said =
            |answer: &Value| unanswered(&order, fault_in(answer).unwrap_or_else(|| panic!("no fault")));
        assert!(said(&died).next_step.contains("`--repair` again"));
        assert_eq!(said(&other).next_step, "resume");
    }

    #[test]
    fn columns_that_were_not_compared_are_named_beside_the_verdict() {
        let table = TableReport { table: "public.t".into(), complete: true, ..TableReport::default() };
        let mut report = Report { tables: vec![table], complete: true, ..Report::default() };
        assert!(render(&report).contains("equal: 0 rows compared"), "{}", render(&report));
        report.tables[0].columns_not_compared = vec!["total".into(), "note".into()];
        let text = render(&report);
        assert!(text.contains("do not travel: total, note\nequal, but for the columns"), "{text}");
        assert_eq!(object(&report)["tables"][0]["columns_not_compared"], json!(["total", "note"]));
    }
}
