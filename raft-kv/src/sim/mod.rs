//! A cluster in one thread from one seed, and the modelled world below it.

pub mod disk;
