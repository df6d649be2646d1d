//! The loop, driven by scripts instead of the machine, on a clock that jumps to whatever is due next.

mod actions;
mod interrupts;
mod locks;
mod resume;
mod script;
mod sweep;
mod timers;
mod world;
