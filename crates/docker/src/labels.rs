//! The labels that everything of ours carries on an engine.

/// The environment.
pub const ENVIRONMENT: &str = "cdpipe.environment";
/// The service.
pub const SERVICE: &str = "cdpipe.service";
/// The release.
pub const RELEASE: &str = "cdpipe.release";
/// The run that made it.
pub const RUN: &str = "cdpipe.run";
/// The effect that made it.
pub const EFFECT: &str = "cdpipe.effect";
/// The whole release as JSON: secrets by name.
pub const SPEC: &str = "cdpipe.spec";
/// The extra environment of a canary as JSON: secrets by name.
pub const EXTRA: &str = "cdpipe.extra";
/// `run` for the container of a step.
pub const KIND: &str = "cdpipe.kind";
/// Names that the container of a step may write to `$CDPIPE_OUTPUT`, as a JSON list.
pub const OUTPUTS: &str = "cdpipe.outputs";

/// The run of an effect id `RUN/NUMBER`.
pub fn run_of(effect: &str) -> &str {
    effect.rsplit_once('/').map_or(effect, |(run, _)| run)
}

/// FNV-1a: tells whether something is the same as before.
pub(crate) fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
