//! What each contestant did in each round, and the tables of it.

use super::super::measure::median;
use super::super::report::verdict;
use super::contestant::{Kind, Mode};

/// One contestant in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Taken {
    /// With several clients.
    pub(super) queries_per_second: f64,
    /// Of the proxy's process, for each query of those.
    pub(super) cpu_us: f64,
    /// With one client.
    pub(super) p50_us: f64,
    /// With one client.
    pub(super) p99_us: f64,
}

/// All rounds of one protocol; who cannot speak it has none.
pub(super) struct Found {
    pub(super) protocol: &'static str,
    taken: [Vec<Taken>; Kind::ALL.len()],
}

impl Found {
    pub(super) fn new(protocol: &'static str) -> Found {
        Found { protocol, taken: Default::default() }
    }

    pub(super) fn add(&mut self, kind: Kind, taken: Taken) {
        eprintln!(
            "bench: {}, {}: {:.0} queries/s, {:.1} µs CPU, p50 {:.0} µs, p99 {:.0} µs",
            self.protocol,
            kind.name(),
            taken.queries_per_second,
            taken.cpu_us,
            taken.p50_us,
            taken.p99_us
        );
        self.taken[kind.index()].push(taken);
    }

    fn of(&self, kind: Kind, what: impl Fn(&Taken) -> f64) -> Option<f64> {
        let taken = &self.taken[kind.index()];
        (!taken.is_empty()).then(|| median(&taken.iter().map(what).collect::<Vec<_>>()))
    }

    /// Median over the rounds of the ratio within a round.
    pub(super) fn ratio(&self, one: Kind, base: Kind, what: impl Fn(&Taken) -> f64) -> Option<f64> {
        let rounds = self.taken[one.index()].iter().zip(&self.taken[base.index()]);
        let ratios: Vec<f64> = rounds.map(|(one, base)| what(one) / what(base)).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Median over the rounds of what a way takes longer than the direct one.
    fn added(&self, kind: Kind, what: impl Fn(&Taken) -> f64) -> Option<f64> {
        let rounds = self.taken[kind.index()].iter().zip(&self.taken[Kind::Direct.index()]);
        let added: Vec<f64> = rounds.map(|(one, direct)| what(one) - what(direct)).collect();
        (kind != Kind::Direct && !added.is_empty()).then(|| median(&added))
    }

    pub(super) fn table(&self) -> String {
        let mut table = "| contestant | queries/s | ÷ relay | ÷ PgBouncer | CPU µs/query | ÷ PgBouncer | p50 µs | added | \
                         p99 µs | added |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
            .to_owned();
        let rate = |taken: &Taken| taken.queries_per_second;
        let cpu = |taken: &Taken| taken.cpu_us;
        for kind in Kind::ALL {
            let peer = match kind {
                Kind::Router(mode) => Some(Kind::PgBouncer(mode)),
                Kind::Mirror => Some(Kind::PgBouncer(Mode::Transaction)),
                Kind::Direct | Kind::Relay | Kind::PgBouncer(_) => None,
            };
            let cells = [
                cell(self.of(kind, rate), 0),
                cell(self.ratio(kind, Kind::Relay, rate), 2),
                cell(peer.and_then(|peer| self.ratio(kind, peer, rate)), 2),
                cell(self.of(kind, cpu).filter(|_| kind != Kind::Direct), 1),
                cell(peer.and_then(|peer| self.ratio(kind, peer, cpu)), 2),
                cell(self.of(kind, |taken| taken.p50_us), 0),
                cell(self.added(kind, |taken| taken.p50_us), 0),
                cell(self.of(kind, |taken| taken.p99_us), 0),
                cell(self.added(kind, |taken| taken.p99_us), 0),
            ];
            table.push_str(&format!("| {} | {} |\n", kind.name(), cells.join(" | ")));
        }
        table
    }
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

/// The router beside PgBouncer in the same mode, where it does worst.
pub(super) fn verdicts(found: &[Found]) -> String {
    let mut text = String::new();
    for mode in Mode::ALL {
        let (router, peer) = (Kind::Router(mode), Kind::PgBouncer(mode));
        let name = mode.name();
        let rates = found.iter().filter_map(|found| found.ratio(router, peer, |t| t.queries_per_second));
        let cpu = found.iter().filter_map(|found| found.ratio(router, peer, |t| t.cpu_us));
        let more = |what: fn(&Taken) -> f64| {
            let each = found
                .iter()
                .filter_map(move |found| Some(found.added(router, what)? - found.added(peer, what)?));
            each.fold(f64::NEG_INFINITY, f64::max)
        };
        let lines = [
            verdict(
                &format!("{name}: queries ÷ PgBouncer's, least"),
                rates.fold(f64::INFINITY, f64::min),
                1.0,
                true,
            ),
            verdict(&format!("{name}: CPU ÷ PgBouncer's, most"), cpu.fold(0.0, f64::max), 1.0, false),
            verdict(&format!("{name}: added p50 − PgBouncer's, µs, most"), more(|t| t.p50_us), 0.0, false),
            verdict(&format!("{name}: added p99 − PgBouncer's, µs, most"), more(|t| t.p99_us), 0.0, false),
        ];
        text.push_str(&lines.join("\n"));
        text.push('\n');
    }
    let peer = Kind::PgBouncer(Mode::Transaction);
    let mirrored = found.iter().filter_map(|found| found.ratio(Kind::Mirror, peer, |t| t.queries_per_second));
    let least = mirrored.fold(f64::INFINITY, f64::min);
    text.push('\n');
    text.push_str(&verdict(
        "with reads told from writes and repeated: queries ÷ PgBouncer's, least",
        least,
        0.9,
        true,
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let mut found = Found::new("simple");
        for round in [1.0, 4.0, 2.0] {
            for (kind, share) in [(Kind::Direct, 1.0), (Kind::Relay, 2.0), (Kind::Router(Mode::Session), 3.0)]
            {
                let value = round * share;
                let taken =
                    Taken { queries_per_second: value, cpu_us: value, p50_us: value, p99_us: value + 10.0 };
                found.add(kind, taken);
            }
        }
        found
    }

    #[test]
    fn ratios_and_what_is_added_are_taken_within_a_round() {
        let found = found();
        assert_eq!(found.ratio(Kind::Router(Mode::Session), Kind::Relay, |t| t.cpu_us), Some(1.5));
        assert_eq!(found.added(Kind::Relay, |t| t.p50_us), Some(2.0));
        assert_eq!(found.added(Kind::Direct, |t| t.p50_us), None);
    }

    #[test]
    fn who_took_no_part_has_dashes() {
        let table = found().table();
        assert!(table.contains("| PgBouncer, session | – | – | – | – | – | – | – | – | – |"));
        assert!(
            table.contains("| segue's router, session | 6 | 1.50 | – | 6.0 | – | 6 | 4 | 16 | 4 |"),
            "{table}"
        );
    }
}
