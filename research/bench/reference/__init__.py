"""Plain ways of doing what the project does faster: own code, honest, the yardsticks of the research.bench."""
