//! Partitions that come or go while the writes are handed over: what a stream does not have would not be carried.

use super::Switch;
use crate::drive::flow::Flow;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::switch::Side;

impl Switch<'_> {
    /// Why the writes cannot be handed to `new` now, if a part of a table is on its way to it, or the way back from the target
    /// does not have one. The stream forward takes in what came once the source owns the writes; the way back cannot.
    pub(super) async fn in_pieces(&self, flow: &Flow, new: Side) -> Outcome<Option<String>> {
        if let Some(table) = flow.verifying.in_pieces().await? {
            return Ok(Some(format!("a partition of {table} was attached or detached and is on its way")));
        }
        if new == Side::Source {
            return Ok(None);
        }
        // All can still be undone: nobody has to go there without it.
        if self.flows.landing_on(Side::Source).is_none() {
            return Ok(Some("the way back has ended".to_owned()));
        }
        Ok(self.lacking_on_way_back().await?.map(|table| {
            format!(
                "partitions of {table} came or went on the target: the way back is made anew when it is asked again"
            )
        }))
    }

    /// A table of which the way back does not have the parts that there are on the target; `None` too if there is no way back.
    pub(super) async fn lacking_on_way_back(&self) -> Outcome<Option<QualifiedName>> {
        match self.flows.landing_on(Side::Source) {
            Some(back) => back.verifying.in_pieces().await,
            None => Ok(None),
        }
    }
}
