//! Commands that answer well, badly, or not at all.
