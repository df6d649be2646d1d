//! Keeps secrets out of everything that is shown or written down.
//!
//! What is masked: the value, each line of a value of several lines, its base64 forms (at each of the three alignments, so also as part
//! of `user:password`; both alphabets; wrapped at 64 or 76 columns), its percent-encoded and its JSON-escaped form, and the text inside if it is base64 itself. All bytes that any
//! of them covers become one `***`, however the output is cut into pieces.
//!
//! What is not: a value, or a line of one, of fewer than [`SHORTEST_BYTES`] bytes, for it would blot out ordinary text and by that tell
//! what it is; and what a program has made of a secret by other means (hashing, encrypting, printing it backwards).

mod patterns;
mod stream;

pub use stream::MaskStream;

use cdpipe_model::secret::SecretValue;
use patterns::Patterns;
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What stands where a secret stood.
pub const MASK: &str = "***";

/// Shorter values, and shorter lines of a value, are not masked.
pub const SHORTEST_BYTES: usize = 4;

/// Knows the values that must not be shown. Cheap to clone; all clones know the same.
#[derive(Debug, Clone, Default)]
pub struct Masker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Grows with each new value, so that a stream asks for the patterns only when there are new ones.
    generation: AtomicU64,
    patterns: RwLock<Arc<Patterns>>,
}

impl Masker {
    /// From now on this value is masked, also in streams that have begun.
    pub fn learn(&self, value: &SecretValue) {
        self.learn_text(value.expose());
    }

    pub(crate) fn learn_text(&self, value: &str) {
        if self.patterns().knows(value) {
            return;
        }
        let mut patterns = self.shared.patterns.write().unwrap_or_else(PoisonError::into_inner);
        *patterns = Arc::new(patterns.with(value));
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// The text with all secrets masked.
    pub fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.patterns().is_empty() {
            return Cow::Borrowed(text);
        }
        let mut stream = MaskStream::new(self.clone());
        let mut masked = stream.feed(text.as_bytes()).into_owned();
        masked.extend_from_slice(&stream.finish());
        match String::from_utf8(masked) {
            Ok(masked) => Cow::Owned(masked),
            Err(error) => Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        }
    }

    /// Whether there is a secret in the text.
    pub fn is_tainted(&self, text: &str) -> bool {
        let patterns = self.patterns();
        let bytes = text.as_bytes();
        (0..bytes.len()).any(|at| patterns.longest_at(bytes, at).is_some())
    }

    /// The values that are known beyond the first `known`, and how many there are now. For another process that masks too.
    pub(crate) fn values_after(&self, known: usize) -> (Vec<String>, usize) {
        self.patterns().values_after(known)
    }

    fn patterns(&self) -> Arc<Patterns> {
        Arc::clone(&self.shared.patterns.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }
}
