//! The fuzz targets' bodies as a library.

pub mod targets;
