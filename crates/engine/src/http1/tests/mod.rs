//! Tables of bytes and what nginx made of them.

mod requests;
