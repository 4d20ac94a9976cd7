//! What the old converter for SGLang's logs made: a span from each action to the next, nine
//! more over them, each below the shortest one that it lies in.

use std::io::Write as _;

use omnitrace::id::TraceId;

use super::request::seconds;
use super::write::{number, processes, span_id, tag};
use crate::jaeger::write::text;
use crate::reader::Request;

/// The old catalogue: each action, and what the span that ends with it is called, in the old
/// spelling; the first ends none. Nothing writes the first three and those from 21 to 23: they
/// are an old proxy's.
const ACTIONS: [(&str, &str); 40] = [
    ("Start to schedule", ""),
    (
        "Finish to choose device and add request",
        "Proxy process the request and choose device",
    ),
    (
        "Start to send request to pd api server",
        "Proxy prepare the request needed sent",
    ),
    ("p_1 prefill api server收到请求", "Request transmitting"),
    ("p_2 触发engine处理请求", "Prefill processes the request"),
    ("p_3 engine开始tokennizer", "P Engine processes the request"),
    ("p_3 engine结束tokennizer", "P Engine tokenizer"),
    ("p_4 tokennizer to sche", "P Tokenizer to schduler"),
    (
        "p_5 P侧添加到bootstrap队列之后",
        "P added to the bootstrap queue",
    ),
    ("P侧握手完成", "P handshaking"),
    ("p_6 握手完成加到waiting队列", "P added to the 'Wait' queue"),
    (
        "p_7 组batch完成 开始run batch",
        "P grouping the batch and trying to add to 'Run'",
    ),
    (
        "p_8 Push a new batch to the input queue",
        "P pushing the batch into input queue",
    ),
    ("p_9 开始执行Run forward", "P Execute engine step"),
    ("p_9 结束执行Run forward", "P execute Run forward"),
    ("p_13 开始发送kv cache", "Preparing to send KV cache"),
    ("p_14 完成发送kv cache", "Sending KV cache"),
    ("p_15 P侧释放KV", "P Releasing KV cache"),
    (
        "p_16 client收到输出并入队",
        "Engine sends output to client, client enqueues.",
    ),
    ("p_17 client出队", "Client waiting in the queue"),
    (
        "p_18 api server收到请求准备返回",
        "Sending request to api server",
    ),
    (
        "Get response from pd api server",
        "Api server return request to the proxy",
    ),
    (
        "Finish to chosse device and start decode generate",
        "Proxy choosing D device",
    ),
    (
        "Finish to decode",
        "Proxy sending request to the chosen D device",
    ),
    ("d_1 decode api server收到请求", "Request in progress"),
    ("d_2 触发engine处理请求", "D processing the request"),
    (
        "d_3 engine开始tokennizer",
        "D Engine processing the request",
    ),
    ("d_3 engine结束tokennizer", "D Engine tokenizer"),
    ("d_4 tokennizer to sche", "D Tokenizer to schduler"),
    ("d_5 scheduler开始处理请求", "D Request in progress"),
    (
        "d_6 D侧添加到prealloc_queue队列之后",
        "D Schduler processing the request and adding D into the prealloc queue",
    ),
    ("d_8 开始分配kv缓存", "D waiting in the prealloc queue"),
    ("d_9 d侧开始握手", "D allocating KV cache"),
    ("d_7 Add need pullling sequence", "D handshaking"),
    (
        "d_11 d侧收到kv传输完成通知",
        "D waiting in the 'need pulling' queue",
    ),
    (
        "d_12 轮询到状态 kv cache传输完成 开始加入到waiting队列",
        "D adding into the 'Wait' queue",
    ),
    (
        "d_18 触发首个decode token执行",
        "D adding into the 'Run' queue",
    ),
    ("d_19 decoder返回第一个token", "D executing the first token"),
    (
        "d_20 decoder返回第二个token",
        "D executing the second token",
    ),
    (
        "d_21 api server收到推理结果",
        "D Execute infer until completion and return the result",
    ),
];

/// From one action to another, by their numbers.
const BIG: [(usize, usize, &str); 9] = [
    (0, 39, "sgLang trace"),
    (0, 37, "TTFT"),
    (3, 20, "Prefill"),
    (10, 20, "P running"),
    (10, 13, "Add to running for prefill"),
    (15, 18, "Prefill free kv"),
    (18, 20, "Send output in prefill stage"),
    (29, 35, "D schdule"),
    (36, 39, "D running"),
];

/// Whether it is SGLang's request.
pub(super) fn is_request(request: &Request) -> bool {
    let mut events = request.events.iter();
    events.any(|event| event.source.role.starts_with("sglang"))
}

/// A span between two actions.
struct Slot {
    start: usize,
    end: usize,
    name: &'static str,
}

impl Slot {
    fn contains(&self, other: &Self) -> bool {
        let longer = self.end - self.start > other.end - other.start;
        longer && self.start <= other.start && other.end <= self.end
    }
}

fn slots() -> impl Iterator<Item = Slot> {
    let small = (1..ACTIONS.len()).map(|end| Slot {
        start: end - 1,
        end,
        name: ACTIONS[end].1,
    });
    let big = BIG.iter().map(|(start, end, name)| Slot {
        start: *start,
        end: *end,
        name,
    });
    big.chain(small)
}

/// The spans that are there, each with the number of its parent among them.
fn tree(times: &[Option<u64>]) -> Vec<(Slot, Option<usize>)> {
    let there = |slot: &Slot| times[slot.start].is_some() && times[slot.end].is_some();
    let slots: Vec<Slot> = slots().filter(there).collect();
    let above = |slot: &Slot| {
        let all = slots.iter().enumerate();
        all.filter(|(_, other)| other.contains(slot))
            .min_by_key(|(_, other)| other.end - other.start)
            .map(|(at, _)| at)
    };
    let parents: Vec<Option<usize>> = slots.iter().map(above).collect();
    slots.into_iter().zip(parents).collect()
}

/// Appends the trace of a request after a comma. The answer is the number of its spans;
/// nothing is appended of a request without any.
pub(super) fn trace(request: &Request, out: &mut Vec<u8>) -> usize {
    let earliest = |(action, _): &(&str, &str)| {
        let events = request.events.iter().filter(|e| *e.action == **action);
        events.map(|event| event.time).min()
    };
    let times: Vec<Option<u64>> = ACTIONS.iter().map(earliest).collect();
    let tree = tree(&times);
    if tree.is_empty() {
        return 0;
    }
    let trace_id = TraceId::of_request(&request.id);
    // Writing to memory cannot fail.
    let _ = write!(out, ",\n{{\"traceID\":\"{trace_id}\",\"spans\":[");
    for (at, (slot, parent)) in tree.iter().enumerate() {
        let time = |action: usize| seconds(times[action].unwrap_or_default());
        let (start, end) = (time(slot.start), time(slot.end));
        if at > 0 {
            out.push(b',');
        }
        let id = |slot: &Slot| span_id(trace_id, format!("{}-{}", slot.start, slot.end));
        let span_id = id(slot);
        let _ = write!(
            out,
            "{{\"traceID\":\"{trace_id}\",\"spanID\":\"{span_id}\",\"operationName\":"
        );
        text(slot.name, out);
        out.extend_from_slice(b",\"references\":[");
        if let Some(parent) = parent {
            let parent = id(&tree[*parent].0);
            let _ = write!(
                out,
                "{{\"refType\":\"CHILD_OF\",\"traceID\":\"{trace_id}\",\"spanID\":\"{parent}\"}}"
            );
        }
        let (micros, duration) = ((start * 1e6) as u64, ((end - start) * 1e6) as u64);
        let _ = write!(
            out,
            "],\"startTime\":{micros},\"duration\":{duration},\"tags\":["
        );
        tag("RequestID", &request.id, out);
        number("start_time", start, out);
        number("end_time", end, out);
        out.push(b',');
        tag("start_action", ACTIONS[slot.start].0, out);
        out.push(b',');
        tag("end_action", ACTIONS[slot.end].0, out);
        out.extend_from_slice(b"],\"processID\":");
        text(slot.name, out);
        let _ = write!(
            out,
            ",\"logs\":[{{\"timestamp\":{micros},\"fields\":[]}}]}}"
        );
    }
    let names: Vec<&str> = tree.iter().map(|(slot, _)| slot.name).collect();
    processes(&names, out);
    tree.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every span below its parent.
    fn drawn(missing: &[usize]) -> String {
        let times: Vec<Option<u64>> = (0..ACTIONS.len())
            .map(|at| (!missing.contains(&at)).then_some(at as u64))
            .collect();
        let tree = tree(&times);
        fn below(
            tree: &[(Slot, Option<usize>)],
            above: Option<usize>,
            depth: usize,
            text: &mut String,
        ) {
            let mut here: Vec<usize> = (0..tree.len()).filter(|at| tree[*at].1 == above).collect();
            here.sort_by_key(|at| tree[*at].0.start);
            for at in here {
                text.push_str(&format!("{}{}\n", "  ".repeat(depth), tree[at].0.name));
                below(tree, Some(at), depth + 1, text);
            }
        }
        let mut text = String::new();
        below(&tree, None, 0, &mut text);
        text
    }

    #[test]
    fn all_actions_are_48_spans_under_one() {
        let tree = drawn(&[]);
        assert_eq!(tree.lines().count(), 39 + 9);
        insta::assert_snapshot!(tree);
    }

    #[test]
    fn without_the_old_proxys_actions_there_are_many_roots() {
        let tree = drawn(&[0, 1, 2, 21, 22, 23]);
        let roots = tree.lines().filter(|line| !line.starts_with(' ')).count();
        assert_eq!((tree.lines().count(), roots), (39, 9));
    }

    #[test]
    fn the_catalogue_is_the_vocabularys_and_that_of_the_old_proxy() {
        let vocabulary = omnitrace::Vocabulary::of_logs();
        for at in [3..21, 24..40].into_iter().flatten() {
            assert!(
                vocabulary.action_named(ACTIONS[at].0).is_some(),
                "{}",
                ACTIONS[at].0
            );
        }
        let names: std::collections::BTreeSet<&str> = slots().map(|slot| slot.name).collect();
        assert_eq!(names.len(), 48);
    }
}
