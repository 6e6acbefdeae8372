# Two commands do everything: make demo, make test. Both make the environment in .venv by themselves.
PYTHON ?= python3.11
RUN := .venv/bin/python tools
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

# a value given on the command line, as one quoted option; a variable of the environment is not meant: WSL has a NAME
given = $(if $(filter command,$(firstword $(origin $(1)))),$(value $(1)))
said = $(if $(filter command,$(firstword $(origin $(1)))),--$(2) '$(subst ','\'',$(value $(1)))')
option = $(if $(call given,$(1)),--$(2) '$(subst ','\'',$(call given,$(1)))')

.PHONY: help demo demo-all test mutants families hostile serve publish bench batch train env lock

help:
	@echo "make demo        one picture changed in five ways in a real ComfyUI; results under output/"
	@echo '                 make demo IMAGE=photo.jpg PROMPT="a cat" EDIT="a dog" CKPT=model.safetensors'
	@echo "make demo-all    every shipped workflow"
	@echo "make test        lint, unit tests, server tests (also on COMFYUI_PATH when it names a ComfyUI)"
	@echo "make mutants     breaks the algorithms one line at a time and says which breaks no test notices"
	@echo "make hostile     1,000 seeded attacks over HTTP on a real server; goes on where it stopped (about 30 minutes)"
	@echo "make families    every node on tiny stand-ins of every model family, on COMFYUI_PATH (README's table: ARGS=--write)"
	@echo "make serve       the same ComfyUI with its page, until Ctrl-C"
	@echo "make publish     every generated file: page workflows, pictures, help tables, gallery, translations"
	@echo "                 make publish NAME=my_workflow ARGS='--pictures none'"
	@echo "make batch       a table of pictures through a workflow, on many servers; docs/batch.md"
	@echo "                 make batch WORKFLOW=edit.api.json TABLE=edits.csv OUT=results/ WORKERS=4"
	@echo "make bench       the tables that can be measured; make bench NAME=inversion measures one"
	@echo "make train       the demo model"

demo: env
	@$(RUN) run $(call option,IMAGE,image) $(call option,PROMPT,prompt) $(call option,EDIT,edit) \
		$(call option,CKPT,checkpoint) $(call option,SIZE,size) $(call option,ENGINE,engine) $(ARGS)

demo-all: env
	@$(RUN) run --all $(call option,ENGINE,engine) $(ARGS)

test: env
	@$(PYTHON) requirements/env.py --browser
	@.venv/bin/python tests/run.py $(ARGS)

hostile: env
	@.venv/bin/python tests/hostile $(ARGS)

mutants: env
	@.venv/bin/python tests/mutants/run.py $(ARGS)

families: env
	@$(RUN) families $(ARGS)

serve: env
	@$(RUN) serve $(call option,ENGINE,engine) $(call option,PORT,port) $(ARGS)

publish: env
	@$(RUN) publish $(call given,NAME) $(ARGS)

bench: env
	@$(RUN) bench $(call given,NAME) $(ARGS)

batch: env
	@$(RUN) batch $(call option,WORKFLOW,workflow) $(call option,TABLE,table) $(call option,OUT,out) \
		$(call option,WORKERS,workers) $(call option,SERVERS,servers) $(call option,ENGINE,engine) \
		$(call said,PROMPT,prompt) $(call said,EDIT,edit) $(ARGS)

train: env
	@$(RUN) train $(ARGS)

env:
	@$(PYTHON) requirements/env.py

lock:
	uv pip compile --quiet --no-emit-index-url --no-header --python-version 3.11 $(ARGS) \
		requirements/env.in -o requirements/env.txt
