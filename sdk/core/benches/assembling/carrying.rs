//! What an action costs its caller more when its time travels with the request.

use std::error::Error;
use std::time::Duration;

use omnitrace::{Action, Config, Pipeline};

use crate::requests::request_ids;
use crate::thread_cpu;

/// Requests that are known when their actions are recorded.
const REQUESTS: u64 = 1_000;

pub(crate) fn report(rounds: u64) -> Result<(), Box<dyn Error>> {
    let (config, _) = Config::from_vars(|name| match name {
        "OMNITRACE_LEGACY_LOG" => Some("off".to_owned()),
        "ROLE" => Some("decode".to_owned()),
        _ => None,
    });
    let pipeline = Pipeline::start(config)?;
    let ids = request_ids(0, REQUESTS);
    let cost = |name: &str| {
        let before = thread_cpu();
        for request_id in &ids {
            pipeline.recorder().action(&Action {
                name,
                time: before,
                request_id,
                occurrence: 0,
                context: None,
                attributes: &[],
            });
        }
        thread_cpu() - before
    };
    let (mut carried, mut plain) = (0, 0);
    // The first round makes the requests known.
    for round in 0..=rounds {
        let (with, without) = (
            cost("Enter decode to generate"),
            cost("Add need pulling sequence"),
        );
        if round > 0 {
            carried += with;
            plain += without;
        }
    }
    let per_action = |total: u64| total as f64 / (rounds * REQUESTS) as f64;
    println!(
        "caller: {:.0} ns an action, {:.0} ns a carried one",
        per_action(plain),
        per_action(carried)
    );
    pipeline.shutdown(Duration::from_secs(2));
    Ok(())
}
