//! The loop that every member runs (being built).
