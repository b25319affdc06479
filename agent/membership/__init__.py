"""Who is in the mesh and who answers: SWIM with Lifeguard, signed records, no clock and no socket."""
