//! The plan as a page.

use crate::plan::Plan;

/// The page.
pub fn html(plan: &Plan) -> String {
    plan.name.clone()
}
