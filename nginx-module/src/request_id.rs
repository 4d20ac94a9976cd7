//! Request ids: the client's own, or a random UUID where it sent none.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;

use omnitrace::id::hex;

use crate::request::Request;

/// Length of a UUID as text.
const UUID_LEN: usize = 36;

/// Longest id that is kept; the rest of a longer one is cut off.
const MAX_LEN: usize = 256;

/// The client's id as text: any bytes, at most [`MAX_LEN`] of them.
pub(crate) fn read<'r>(request: Request<'r>, value: &'r [u8]) -> &'r str {
    let text = request.text(&value[..value.len().min(MAX_LEN)]);
    // A byte outside UTF-8 has become a replacement character of three.
    let mut end = text.len().min(MAX_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

thread_local! {
    /// State of xoshiro256++; all zero until the first id.
    static STATE: Cell<[u64; 4]> = const { Cell::new([0; 4]) };
}

/// A new lower-case UUID, version 4. Unique, but not a secret.
pub(crate) fn generate() -> [u8; UUID_LEN] {
    let mut state = STATE.get();
    if state == [0; 4] {
        // Here and not before the fork: workers must not share a sequence.
        state = seed();
    }
    let id = u128::from(next(&mut state)) << 64 | u128::from(next(&mut state));
    STATE.set(state);

    write(id & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62))
}

/// A UUID as text.
fn write(id: u128) -> [u8; UUID_LEN] {
    let digits = [(id >> 64) as u64, id as u64].map(hex);
    let digits = digits.as_flattened();
    let mut text = [b'-'; UUID_LEN];
    for (at, part) in [
        (0, 0..8),
        (9, 8..12),
        (14, 12..16),
        (19, 16..20),
        (24, 20..32),
    ] {
        text[at..at + part.len()].copy_from_slice(&digits[part]);
    }
    text
}

fn seed() -> [u64; 4] {
    let mut bytes = [0u8; 32];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if random.is_err() || bytes == [0; 32] {
        // A chroot without devices: process and time still differ between workers.
        let time = crate::clock::now();
        bytes[..8].copy_from_slice(&time.to_ne_bytes());
        bytes[8..12].copy_from_slice(&std::process::id().to_ne_bytes());
    }
    let mut state = [0; 4];
    for (word, bytes) in state.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    state
}

/// One step of xoshiro256++ by Blackman and Vigna, public domain.
fn next(state: &mut [u64; 4]) -> u64 {
    let result = state[0]
        .wrapping_add(state[3])
        .rotate_left(23)
        .wrapping_add(state[0]);
    let shifted = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = state[3].rotate_left(45);
    result
}
