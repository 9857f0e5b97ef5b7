import json, os, random, shutil, signal, time
from functools import partial
from processes import *
import pytest
from test_distributed import STEPS, hurry, wait_for_step, runs

def stop_in_eval(call): signal_in_evaluation(call, signal.SIGSTOP)
def stop_in_save(n):
    from bertqa.training import checkpoint
    whole, calls = checkpoint.save_checkpoint, []
    def save(*a):
        calls.append(1)
        if len(calls)==n: os.kill(os.getpid(), signal.SIGSTOP)
        return whole(*a)
    checkpoint.save_checkpoint = save
def die_in_eval(call, n): signal_in_evaluation(call, n)

@pytest.mark.parametrize("rank",[0,1])
@pytest.mark.parametrize("hook",[partial(stop_in_eval,1),partial(stop_in_eval,2)],ids=["first","second"])
@pytest.mark.parametrize("how",["timeout","SIGTERM","SIGHUP","SIGINT","SIGINT2"])
def test_stop_eval(tmp_path,tiny_model,letters,rank,hook,how):
    args=training(tiny_model,letters,tmp_path/"run",*STEPS,"--save-every","0")
    h=partial(hurry,3.0,60.0) if how=="timeout" else partial(hurry,60.0,2.0)
    ps=start_ranks(args,2,tmp_path,h,small_work,only={rank:hook})
    other=ps[1-rank]; stopped=ps[rank]
    end=time.time()+60
    while time.time()<end:
        st=open(f"/proc/{stopped.pid}/stat").read().split()[2]
        if st=="T": break
        time.sleep(.1)
    time.sleep(1); t=time.time()
    if how!="timeout": os.kill(other.pid,getattr(signal,how[:6] if how.startswith("SIGINT") else how))
    if how=="SIGINT2": time.sleep(.5); os.kill(other.pid,signal.SIGINT)
    other.join(40); took=time.time()-t
    stopped.kill(); stopped.join()
    said=(tmp_path/f"rank{1-rank}").read_text()
    print("=====",rank,how,other.exitcode,f"{took:.1f}s","Traceback" in said, "\n".join(said.splitlines()[-3:])[:400])

@pytest.mark.parametrize("how",["timeout","SIGTERM"])
def test_stop_save(tmp_path,tiny_model,letters,how):
    args=training(tiny_model,letters,tmp_path/"run",*STEPS,"--save-every","0")
    h=partial(hurry,3.0,60.0) if how=="timeout" else partial(hurry,60.0,2.0)
    ps=start_ranks(args,2,tmp_path,h,small_work,only={0:partial(stop_in_save,4)})
    stopped,other=ps
    end=time.time()+60
    while time.time()<end:
        st=open(f"/proc/{stopped.pid}/stat").read().split()[2]
        if st=="T": break
        time.sleep(.1)
    time.sleep(1); t=time.time()
    if how!="timeout": os.kill(other.pid,signal.SIGTERM)
    other.join(40); took=time.time()-t
    stopped.kill(); stopped.join()
    said=(tmp_path/"rank1").read_text()
    print("=====save",how,other.exitcode,f"{took:.1f}s","Traceback" in said, "\n".join(said.splitlines()[-3:])[:400])
    # resume works
    ps=start_ranks(["train","--resume",tmp_path/"run"],2,tmp_path,small_work); st,_=wait(ps,tmp_path); print("resume",st)

@pytest.mark.parametrize("number",[signal.SIGTERM,signal.SIGHUP,signal.SIGINT,signal.SIGUSR1])
def test_all_get_it_in_the_evaluation(tmp_path,runs,tiny_model,letters,number):
    for call in (1,2):
        out=tmp_path/f"run{call}"; logs=tmp_path/f"l{call}"; logs.mkdir()
        args=training(tiny_model,letters,out,*STEPS)
        st,said=wait(start_ranks(args,2,logs,small_work,partial(die_in_eval,call,number)),logs)
        run_ranks(["train","--resume",out],2,tmp_path/f"r{call}",small_work)
        print("=====all",number,call,st,"Traceback" in said,[l for l in said.splitlines() if "stopp" in l], result(out)==result(runs[2]))
