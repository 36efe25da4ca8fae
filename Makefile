# make demo   speak a corpus, train on it with the sampled and the exact loss, transcribe   (8 minutes on 2 cores)
# make test   lint and every test that needs no GPU                                         (15 minutes on 2 cores)
# Each makes its own environment in $(VENV) first; constraints.txt pins what CI ran.

PYTHON ?= python3
VENV ?= .venv
RUN = . $(VENV)/bin/activate &&

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(RUN) python examples/demo/demo.py

test: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -q --durations 15

$(VENV)/.%: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) demo_out
