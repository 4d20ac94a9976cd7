//! What the requests say of the hosts' clocks: each message from one host to another was
//! received after it was sent.

use std::collections::BTreeMap;

use omnitrace::Vocabulary;
use omnitrace::vocabulary::ActionId;

use super::ceiling::Ceiling;
use super::graph::{self, Weight};
use super::repair::Repair;

/// One clock: a host's, as its number in the caller's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(pub u32);

/// What must be known of a host for the repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// What a person calls it.
    pub name: String,
    /// The host with the least becomes the reference, among equals the one with the most
    /// messages: the role's number in the vocabulary, for a proxy sees all requests.
    pub rank: u16,
}

/// The messages of many requests, in a space that does not grow with their number: some
/// kilobytes for each pair of hosts. One for each thread, then [`Samples::merge`].
#[derive(Debug, Default)]
pub struct Samples {
    ceilings: BTreeMap<(u32, u32), Ceiling>,
    /// The present request's moment of each action, and how often it happened.
    moments: Vec<(u32, Host, u64)>,
}

impl Samples {
    /// Takes one request: its actions, each with the host whose clock gave the time, in
    /// nanoseconds since 1970. What happened twice, as where a request was tried again,
    /// is no evidence: nobody knows which belongs to which.
    pub fn request(
        &mut self,
        vocabulary: &Vocabulary,
        actions: impl IntoIterator<Item = (ActionId, Host, u64)>,
    ) {
        self.moments.clear();
        self.moments
            .resize(vocabulary.actions().len(), (0, Host(0), 0));
        for (action, host, time) in actions {
            if let Some(moment) = self.moments.get_mut(usize::from(action.0)) {
                // The same line may stand in a file and in its copy.
                if moment.0 == 0 || (moment.1, moment.2) != (host, time) {
                    *moment = (moment.0 + 1, host, time);
                }
            }
        }
        for message in vocabulary.messages() {
            let (Some(sent), Some(received)) = (self.first(&message.from), self.first(&message.to))
            else {
                continue;
            };
            if sent.0 == received.0 {
                continue;
            }
            let (from, to) = (sent.0.0, received.0.0);
            let (sent, received) = (sent.1 as i64, received.1 as i64);
            let at = if from < to { sent } else { received };
            let most = received.saturating_sub(sent) + message.slack as i64;
            self.ceilings.entry((from, to)).or_default().add(at, most);
        }
    }

    /// Host and time of the first of these actions that happened, if only once.
    fn first(&self, actions: &[ActionId]) -> Option<(Host, u64)> {
        let mut moments = actions.iter().map(|a| self.moments[usize::from(a.0)]);
        let (count, host, time) = moments.find(|m| m.0 > 0)?;
        (count == 1).then_some((host, time))
    }

    /// Adds what another thread has seen.
    pub fn merge(&mut self, other: Self) {
        for (pair, ceiling) in other.ceilings {
            self.ceilings.entry(pair).or_default().merge(ceiling);
        }
    }

    /// The clocks of `hosts`, which [`Host`]s are numbers of.
    pub fn solve(self, hosts: Vec<HostInfo>) -> Repair {
        let mut messages = vec![0; hosts.len()];
        let mut ceilings = BTreeMap::new();
        for ((from, to), ceiling) in self.ceilings {
            let (from, to) = (from as usize, to as usize);
            messages[from] += ceiling.count;
            messages[to] += ceiling.count;
            ceilings.insert((from, to), ceiling);
        }
        let weights: Vec<Weight> = hosts
            .iter()
            .zip(&messages)
            .map(|(host, messages)| Weight {
                rank: host.rank,
                messages: *messages,
            })
            .collect();
        Repair::new(hosts, graph::solve(ceilings, &weights))
    }
}
