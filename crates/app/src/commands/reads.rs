//! `segue switch reads` and `segue mirror`: ask the driver for other rules for reads, and show what is in force.

use super::order::give;
use super::{asker, fault, print, print_json, switch, unreadable};
use crate::cli::SwitchReads;
use crate::drive::reads::answer::{MirrorOrder, ReadsAnswer, ReadsOrder, RulesSet};
use crate::drive::reads::has_router;
use crate::drive::switch::answer::Overridden;
use crate::exit::Exit;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_model::switch::reads::ReadRules;
use serde_json::{Value, json};

/// Moves a share of the reads.
pub(crate) async fn switch(spec: &Spec, asked: &SwitchReads, json: bool) -> Exit {
    let order = order(asked);
    // The driver checks it again.
    if let Err(refused) = order.overrides(&asker()) {
        return fault(&switch::not_overridden(&refused), json);
    }
    // Less is never refused.
    if let (true, Err(f)) = (asked.percent > 0, has_router(spec)) {
        return fault(&f, json);
    }
    answered(give(spec, "reads", &json!(order)).await, json)
}

/// Has a share of the reads compared.
pub(crate) async fn mirror(spec: &Spec, percent: u8, json: bool) -> Exit {
    if let (true, Err(f)) = (percent > 0, has_router(spec)) {
        return fault(&f, json);
    }
    answered(give(spec, "mirror", &json!(MirrorOrder { percent })).await, json)
}

fn order(asked: &SwitchReads) -> ReadsOrder {
    let reason = asked.overriding.reason.clone().unwrap_or_default();
    let gates = asked.overriding.gates.iter();
    ReadsOrder {
        percent: asked.percent,
        // The last rule of a name counts.
        tenants: asked.tenants.iter().cloned().collect(),
        overrides: gates.map(|gate| Overridden { gate: *gate, reason: reason.clone() }).collect(),
    }
}

fn answered(answer: Outcome<Value>, json: bool) -> Exit {
    let answer = answer.and_then(|answer| serde_json::from_value(answer).map_err(|e| unreadable(&e)));
    let answer: ReadsAnswer = match answer {
        Ok(answer) => answer,
        Err(f) => return fault(&f, json),
    };
    if json {
        print_json(&json!(answer));
    } else {
        print(&render(&answer));
    }
    answer.exit()
}

fn render(answer: &ReadsAnswer) -> String {
    match answer {
        ReadsAnswer::Set(RulesSet { before, now, routers }) => {
            let same = if before == now { " (as before)" } else { "" };
            let told = match routers {
                0 => "no router is there to go by it: start `segue router`, or have applications connect to the one of \
                      `segue run`"
                    .to_owned(),
                n => format!("{n} router(s) go by it; what becomes of it: `segue status`"),
            };
            format!("{}{same}\n{told}\n", in_force(now))
        }
        ReadsAnswer::Refused { blockers } => {
            switch::refused(blockers, "the rules for reads are as they were")
        }
    }
}

/// Rules, in words.
pub(crate) fn in_force(rules: &ReadRules) -> String {
    let ReadRules { share_percent, tenants, mirror_percent, contained, .. } = rules;
    let tenants: Vec<String> = tenants.iter().map(|(name, side)| format!("{name} by the {side}")).collect();
    let tenants =
        if tenants.is_empty() { String::new() } else { format!("; tenants served: {}", tenants.join(", ")) };
    let contained = if *contained { "; contained: the owner serves every read" } else { "" };
    format!(
        "the target serves {share_percent} % of the reads, {mirror_percent} % are compared{tenants}{contained}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::switch::answer::Blocked;
    use segue_model::switch::Side;

    #[test]
    fn it_says_what_is_in_force_and_who_goes_by_it() {
        let now = ReadRules {
            share_percent: 10,
            tenants: [("acme".to_owned(), Side::Target)].into(),
            ..ReadRules::default()
        };
        let set = |routers| RulesSet { before: ReadRules::default(), now: now.clone(), routers };
        assert_eq!(
            render(&ReadsAnswer::Set(set(2))),
            "the target serves 10 % of the reads, 0 % are compared; tenants served: acme by the target\n\
             2 router(s) go by it; what becomes of it: `segue status`\n"
        );
        assert!(render(&ReadsAnswer::Set(set(0))).contains("no router is there"));
        assert!(in_force(&ReadRules { contained: true, ..now }).ends_with("the owner serves every read"));
    }

    #[test]
    fn what_is_refused_names_its_gates() {
        let blocker = Blocked {
            gate: "lag".into(),
            why: "the lag is 9 s".into(),
            next: "wait".into(),
            may_be_overridden: true,
        };
        let text = render(&ReadsAnswer::Refused { blockers: vec![blocker] });
        assert!(text.contains("lag: the lag is 9 s; next: wait (or, with your name to it"), "{text}");
    }
}
