"""Schemes, thermostat and the one time loop that every MM and QM run goes through."""
