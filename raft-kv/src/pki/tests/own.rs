//! What may be brought as a root, and what is refused, each by its reason.
