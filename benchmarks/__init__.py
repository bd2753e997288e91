"""What `vitutor bench` leaves out: parts of papers beside their released form, and memory. JSON; --out FILE."""
