//! The keyserver between two terminals, both proxied by it (spec row K10), in virtual time.
//!
//! ```text
//!   terminal a ── sealed ──► ┌───────────┐ ◄── sealed ── terminal b
//!                            │ keyserver │
//!         IKE to b, looped ──► └───────────┘ ──► IKE to a, looped
//! ```

mod credentials;
mod levels;
mod moves;
mod operators;
mod refusals;
mod setup;
mod transfers;
mod world;
