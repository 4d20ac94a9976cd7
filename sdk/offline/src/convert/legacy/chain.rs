//! The spans of the old converter and how one hangs on the other: a chain along the whole
//! request.

/// Actions of the old catalogue.
pub(super) const ACTIONS: usize = 37;
/// Spans of a request with all actions.
pub(super) const SLOTS: usize = BIG.len() + SMALL.len();

/// Which chain a span is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The main chain.
    Single,
    /// The main chain, with a chain of small spans below it.
    Big,
    /// Below "Pull kv".
    Special,
    /// The tokens at the proxy, below "TTFT".
    Add,
    /// Between two actions that follow each other.
    Small,
}

use Kind::{Add, Big, Single, Special};

/// From one action to another, by their numbers.
pub(super) const BIG: [(usize, usize, &str, Kind); 24] = [
    (0, 36, "Trace for Omni Proxy", Single),
    (0, 32, "TTFT", Single),
    (0, 16, "Prefill", Single),
    (0, 1, "Proxy received request", Single),
    (1, 2, "Process request", Single),
    (2, 3, "Tokenizer", Single),
    (3, 4, "APC matching", Single),
    (4, 5, "P waiting", Single),
    (5, 6, "P scheduled", Single),
    (6, 16, "P running", Single),
    (7, 12, "Add to running for prefill", Big),
    (12, 14, "Prefill execute_model", Big),
    (14, 16, "Send output in prefill stage", Big),
    (16, 17, "Finish P running and return to proxy", Single),
    (18, 19, "D waiting", Single),
    (19, 20, "D scheduled", Single),
    (20, 31, "D running", Single),
    (21, 23, "Add to need pulling for decode", Big),
    (23, 25, "Pull kv", Big),
    (26, 31, "Send output in decode stage", Big),
    (25, 33, "Prefill free kv", Special),
    (32, 34, "TPOT1", Add),
    (34, 35, "TPOT2", Add),
    (35, 36, "Received all tokens", Add),
];

/// Actions that begin a small span, named after the next action.
pub(super) const SMALL: [usize; 21] = [
    6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30,
];

const ROOT: usize = 0;
const TTFT: usize = 1;
const PULL_KV: usize = 18;

/// First and last action of a span, and its kind.
pub(super) fn slot(slot: usize) -> (usize, usize, Kind) {
    match BIG.get(slot) {
        Some((start, end, _, kind)) => (*start, *end, *kind),
        None => {
            let start = SMALL[slot - BIG.len()];
            (start, start + 1, Kind::Small)
        }
    }
}

/// The span from an action to the next.
fn step(from: usize) -> Option<usize> {
    let big = BIG
        .iter()
        .position(|(start, end, ..)| (*start, *end) == (from, from + 1));
    let small = || SMALL.iter().position(|start| *start == from);
    big.or_else(|| small().map(|at| BIG.len() + at))
}

/// The parents of the spans that are there. They follow the numbers of the actions, not
/// their times: clocks that differ cannot make a circle.
pub(super) fn parents(is_there: &[bool; SLOTS]) -> [Option<usize>; SLOTS] {
    let mut parents = [None; SLOTS];
    let there = |slot: &usize| is_there[*slot];
    let of_kind = |kinds: &[Kind]| -> Vec<usize> {
        let mut slots: Vec<usize> = (0..BIG.len())
            .filter(there)
            .filter(|s| kinds.contains(&BIG[*s].3))
            .collect();
        slots.sort_by_key(|s| (BIG[*s].0, std::cmp::Reverse(BIG[*s].1)));
        slots
    };
    let steps = |from: usize, to: usize| (from..to).filter_map(step).filter(there);
    let root = Some(ROOT).filter(there);
    let mut above = Some(TTFT).filter(there).or(root);
    for add in of_kind(&[Add]) {
        parents[add] = above;
        above = Some(add);
    }
    for special in of_kind(&[Special]) {
        parents[special] = Some(PULL_KV).filter(there).or(root);
    }
    for pair in of_kind(&[Single, Big]).windows(2) {
        let (here, next) = (pair[0], pair[1]);
        let ((a, b, ..), (c, d, ..)) = (BIG[here], BIG[next]);
        let gap = match () {
            () if c > a && d <= b => a..c,
            () if b < c => b..c,
            () => 0..0,
        };
        let mut above = here;
        for step in steps(gap.start, gap.end) {
            parents[step] = Some(above);
            above = step;
        }
        parents[next] = Some(above);
    }
    for big in of_kind(&[Big]) {
        let mut above = big;
        for step in steps(BIG[big].0, BIG[big].1) {
            parents[step] = Some(above);
            above = step;
        }
    }
    parents
}

#[cfg(test)]
mod tests {
    use omnitrace::Vocabulary;

    use super::*;

    fn name(of: usize) -> String {
        let (start, _, kind) = slot(of);
        match kind {
            Kind::Small => format!("{}", Vocabulary::omni_vllm().actions()[start + 1].name),
            _ => BIG[of].2.to_owned(),
        }
    }

    /// Every span below its parent.
    fn tree(missing: &[usize]) -> String {
        let mut is_there = [true; SLOTS];
        for (at, there) in is_there.iter_mut().enumerate() {
            let (start, end, _) = slot(at);
            *there = !missing.contains(&start) && !missing.contains(&end);
        }
        let parents = parents(&is_there);
        let mut text = String::new();
        fn below(
            above: Option<usize>,
            depth: usize,
            is_there: &[bool; SLOTS],
            parents: &[Option<usize>; SLOTS],
            text: &mut String,
        ) {
            for at in 0..SLOTS {
                if is_there[at] && parents[at] == above {
                    text.push_str(&format!("{}{}\n", "  ".repeat(depth), name(at)));
                    below(Some(at), depth + 1, is_there, parents, text);
                }
            }
        }
        below(None, 0, &is_there, &parents, &mut text);
        text
    }

    #[test]
    fn a_whole_request_is_one_chain_of_45_spans() {
        let tree = tree(&[]);
        assert_eq!(tree.lines().count(), 45);
        insta::assert_snapshot!(tree);
    }

    #[test]
    fn without_any_one_action_all_other_spans_still_hang_together() {
        for missing in 1..36 {
            let tree = tree(&[missing]);
            let roots: Vec<&str> = tree.lines().filter(|l| !l.starts_with(' ')).collect();
            let hangs = roots == ["Trace for Omni Proxy"];
            // The small spans around these have nothing else to hang on.
            assert!(
                hangs || [26, 31].contains(&missing),
                "without {missing}: {roots:?}"
            );
        }
    }

    #[test]
    fn without_a_beginning_or_an_end_there_is_a_tree_nevertheless() {
        insta::assert_snapshot!(tree(&[0, 32, 3, 33]));
    }
}
