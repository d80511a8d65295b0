//! The switch inside the driver. Here: the objects that it and the commands exchange; nothing of how it is done.

pub(crate) mod answer;
