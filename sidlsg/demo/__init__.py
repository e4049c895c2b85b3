"""A page on this machine where the student's picture follows the prompt as it is typed. Needs the extra ``sidlsg[demo]``."""
