// Prefill/decode disaggregation for vLLM on plain nginx: the handler of the two generating
// endpoints. The locations it names are in pd_proxy.conf.
//
//   client ── body ──► completion() ── body', max_tokens 1 ──► /_pd/prefill/… ──► prefill node
//                           │◄──────── kv_transfer_params ────────────────────────────┘
//                           └─ body + kv_transfer_params ──► @decode ──► decode node ──► client
//
// Bodies are edited as bytes. Parsing and writing them anew would round big integers and could
// change escapes, and the two nodes must tokenise exactly what the client sent.

// What tells the prefill node to keep the request's KV blocks for a decode node to fetch.
const REMOTE_DECODE = '{"do_remote_decode":true,"do_remote_prefill":false,'
    + '"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}';

const QUOTE = 0x22, BACKSLASH = 0x5c, COMMA = 0x2c, COLON = 0x3a;
const OPEN_BRACE = 0x7b, CLOSE_BRACE = 0x7d, OPEN_BRACKET = 0x5b, CLOSE_BRACKET = 0x5d;

// js_content of /v1/chat/completions and /v1/completions.
async function completion(r) {
    if (r.method !== 'POST') {
        // A browser's preflight, or a mistake: vLLM has the answer to either.
        return r.internalRedirect('@other');
    }
    let body, request, members;
    try {
        body = r.requestBuffer;
    } catch (e) {
        // A chunked body's framing counts against client_body_buffer_size, so one of nearly
        // client_max_body_size can land in a file, where njs cannot read it.
        return fail(r, 413, 'the request body is larger than this proxy accepts');
    }
    try {
        request = JSON.parse(r.requestText);
        if (request === null || typeof request !== 'object' || Array.isArray(request)) {
            throw new SyntaxError('an object is expected');
        }
        members = scanMembers(body);
    } catch (e) {
        return fail(r, 400, `the request body is not valid JSON: ${e.message}`);
    }

    const prefill = await r.subrequest(`/_pd/prefill${r.uri}`, {
        method: 'POST',
        args: r.variables.args || '',
        body: withMembers(body, members, prefillMembers(request)),
    });
    if (prefill.status < 200 || prefill.status > 299) {
        return relayFailure(r, prefill);
    }

    r.variables.pd_decode_body = decodeBody(r, body, members, prefill);
    r.internalRedirect('@decode');
}

// The members that differ in the prefill node's copy; undefined takes a member out.
function prefillMembers(request) {
    const members = {max_tokens: '1', stream: 'false', stream_options: undefined};
    if ('max_completion_tokens' in request) {
        members.max_completion_tokens = '1';
    }
    if (typeof request.min_tokens === 'number' && request.min_tokens > 1) {
        // vLLM refuses min_tokens above max_tokens.
        members.min_tokens = '1';
    }
    members.kv_transfer_params = REMOTE_DECODE;
    return members;
}

// The client's body plus what the prefill node says about its KV blocks. A node without a KV
// connector says nothing: decode then gets the client's own bytes and does all the work itself.
function decodeBody(r, body, members, prefill) {
    let params;
    try {
        params = JSON.parse(prefill.responseText).kv_transfer_params;
    } catch (e) {
        r.warn(`prefill node's answer is not a JSON object: ${e.message}`);
    }
    if (!params) {
        r.warn('prefill node returned no kv_transfer_params, decode will compute the prompt anew');
        return body;
    }
    return withMembers(body, members, {
        kv_transfer_params: rawMember(prefill.responseBuffer, 'kv_transfer_params'),
    });
}

// Hands a failed prefill to the client: the node's own status and body, or error()'s.
function relayFailure(r, prefill) {
    ['Content-Type', 'Retry-After'].forEach(name => {
        if (prefill.headersOut[name]) {
            r.headersOut[name] = prefill.headersOut[name];
        }
    });
    r.return(prefill.status, prefill.responseBuffer);
}

// js_content of @error: nginx's own errors, on either leg. A node's error never gets here.
function error(r) {
    const status = Number(r.variables.status);
    const node = r.uri.startsWith('/_pd/prefill/') ? 'prefill' : 'decode';
    const messages = {
        413: 'the request body is larger than this proxy accepts',
        502: `no ${node} node could be reached`,
        504: `the ${node} node did not answer in time`,
    };
    fail(r, status, messages[status] || 'the proxy failed');
}

// Answers with an error in the form OpenAI's clients understand.
function fail(r, status, message) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({error: {
        message,
        type: status < 500 ? 'invalid_request_error' : 'server_error',
        param: null,
        code: status,
    }}) + '\n');
}

// A copy of the JSON object `body` in which the named members have the given JSON texts:
// old ones are cut out, new ones appended, every other byte stays as it was.
function withMembers(body, members, changes) {
    const changed = Object.keys(changes);
    const last = members[members.length - 1];
    const parts = [];
    let kept = 0;
    members.forEach(member => {
        if (changed.includes(member.name)) {
            parts.push(body.subarray(kept, member.start));
            kept = member.next;
        }
    });
    const end = body.lastIndexOf(CLOSE_BRACE);
    parts.push(body.subarray(kept, end));

    const added = changed
        .filter(name => changes[name] !== undefined)
        .map(name => `"${name}":${changes[name]}`)
        .join(',');
    // A comma is there already where the last member was cut out.
    const comma = last && !changed.includes(last.name) ? ',' : '';
    parts.push(Buffer.from(comma + added), body.subarray(end));
    return Buffer.concat(parts);
}

// The JSON text of one member, as it stands in the object `body`.
function rawMember(body, name) {
    const member = scanMembers(body).filter(m => m.name === name).pop();
    return body.subarray(member.value, member.end).toString().trim();
}

// The members of a JSON object: name, and the offsets where the member, its value, the value's
// end and the next member are. A name may occur more than once. `body` has been through
// JSON.parse, so the scan checks no grammar; it only never runs past the end.
function scanMembers(body) {
    const members = [];
    let at = skipTo(body, 0, OPEN_BRACE, OPEN_BRACE) + 1;
    for (;;) {
        at = skipTo(body, at, QUOTE, CLOSE_BRACE);
        if (body[at] === CLOSE_BRACE) {
            return members;
        }
        const member = {start: at};
        at = stringEnd(body, at);
        member.name = JSON.parse(body.subarray(member.start, at).toString());
        member.value = skipTo(body, at, COLON, COLON) + 1;
        member.end = valueEnd(body, member.value);
        at = skipTo(body, member.end, COMMA, CLOSE_BRACE);
        member.next = body[at] === COMMA ? at + 1 : at;
        at = member.next;
        members.push(member);
    }
}

// The offset of the first of either byte from `at` on.
function skipTo(body, at, byte, other) {
    while (body[at] !== byte && body[at] !== other) {
        if (at >= body.length) {
            throw new SyntaxError('unexpected end');
        }
        at++;
    }
    return at;
}

// The offset after the string that starts at `at`.
function stringEnd(body, at) {
    for (;;) {
        at = body.indexOf(QUOTE, at + 1);
        if (at < 0) {
            throw new SyntaxError('unexpected end');
        }
        let before = at - 1;
        while (body[before] === BACKSLASH) {
            before--;
        }
        // A quote ends the string unless an odd number of backslashes precedes it.
        if ((at - before) % 2 === 1) {
            return at + 1;
        }
    }
}

// The offset after the value that starts at or after `at`.
function valueEnd(body, at) {
    for (; at < body.length; at++) {
        switch (body[at]) {
        case QUOTE:
            return stringEnd(body, at);
        case OPEN_BRACE:
        case OPEN_BRACKET:
            return nestedEnd(body, at);
        case COMMA:
        case CLOSE_BRACE:
            return at;
        }
    }
    throw new SyntaxError('unexpected end');
}

// The offset after the array or object that starts at `at`. Prompts can be arrays of 100,000
// token ids, so it leaps from mark to mark with the native search, each mark's next place being
// looked up once: a loop over the bytes would hold up the worker's other requests.
function nestedEnd(body, at) {
    const marks = [QUOTE, OPEN_BRACE, OPEN_BRACKET, CLOSE_BRACE, CLOSE_BRACKET];
    const places = [-1, -1, -1, -1, -1];
    let depth = 0;
    for (;;) {
        let nearest = 0;
        for (let i = 0; i < marks.length; i++) {
            if (places[i] < at) {
                const found = body.indexOf(marks[i], at);
                places[i] = found < 0 ? body.length : found;
            }
            if (places[i] < places[nearest]) {
                nearest = i;
            }
        }
        at = places[nearest];
        if (at === body.length) {
            throw new SyntaxError('unexpected end');
        }
        if (nearest === 0) {
            at = stringEnd(body, at);
            continue;
        }
        depth += nearest < 3 ? 1 : -1;
        at++;
        if (depth === 0) {
            return at;
        }
    }
}

export default {completion, error};
