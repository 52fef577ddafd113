from lbr_st.stages.represent import *  # temporary
